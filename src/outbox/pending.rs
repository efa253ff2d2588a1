//! Records appended and not yet durable.
//!
//! They stay in memory until a sync has succeeded, because after a failed one what was written may be gone. Always
//! true: their seqs ascend, and together they fit one segment. It never touches a file.

use std::collections::VecDeque;

use super::frame_limit;
use super::record::{self, Chain};

#[derive(Default)]
pub(super) struct Pending {
    records: VecDeque<(u64, Vec<u8>)>,
    bytes: u64,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The most they take on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a record; its seq is above all others.
    pub fn push(&mut self, seq: u64, content: Vec<u8>) {
        self.bytes += frame_limit(&content);
        self.records.push_back((seq, content));
    }

    /// The content of the record `seq`.
    pub fn get(&self, seq: u64) -> Option<&[u8]> {
        let number = self.records.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        self.records.get(number).map(|(_, content)| content.as_slice())
    }

    /// The first behind this seq.
    pub fn next(&self, after: u64) -> Option<(u64, &[u8])> {
        let number = self.records.partition_point(|(seq, _)| *seq <= after);
        self.records.get(number).map(|(seq, content)| (*seq, content.as_slice()))
    }

    /// Forgets all up to `through`; how many, and the most they would have taken, come back.
    pub fn release(&mut self, through: u64) -> (u64, u64) {
        let (mut records, mut bytes) = (0, 0);
        let released = self.records.partition_point(|(seq, _)| *seq <= through);
        for (_, content) in self.records.drain(..released) {
            records += 1;
            bytes += frame_limit(&content);
        }
        self.bytes -= bytes;
        (records, bytes)
    }

    /// All as frames, one behind the other, with the seq and length of each. `chain` is that of the first.
    pub fn seal(&self, salt: u64, mut chain: Chain) -> (Vec<u8>, Vec<(u64, u64)>) {
        let mut image = Vec::with_capacity(self.bytes as usize);
        let mut frames = Vec::with_capacity(self.records.len());
        for (seq, content) in &self.records {
            let bytes = record::seal(&mut image, salt, *seq, chain, content);
            frames.push((*seq, bytes as u64));
            chain.previous = *seq;
        }
        (image, frames)
    }
}
