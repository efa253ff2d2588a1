//! One message in the outbox, and its form on disk.
//!
//! ```text
//! frame   head check u32 │ body check u32 │ body length u32 │ seq u64 │ body            (little endian)
//! body    chain │ accepted │ qos u8 │ retain u8 │ class u8 │ topic │ id │ properties │ payload
//! chain   seq - previous │ seq - durable │ seq - released       (numbers without a width are LEB128)
//! topic, id, properties: length, bytes; payload: the rest
//! ```
//!
//! Both checks are CRC32C and begin with half of the file's salt each, which only its name tells: an
//! application cannot put a frame into a payload that a search through damaged bytes would believe. The head
//! has a check of its own so that a search need not read a body for every byte it tries. The chain lets
//! recovery tell what is missing: the frame written before this one, the newest frame that was durable when
//! this one was written, and the newest seq that was released by then.
//!
//! Always true: what decodes was encoded here. It never panics on any bytes, and never touches a file.

pub use switchback_control::Seq;
use switchback_control::event::NUMBER_MAX;

/// One message as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub seq: Seq,
    /// When it was accepted: wall clock, milliseconds since the epoch.
    pub accepted: u64,
    /// MQTT topic.
    pub topic: String,
    /// MQTT payload.
    pub payload: Vec<u8>,
    /// MQTT quality of service, 0 to 2; kept as given.
    pub qos: u8,
    /// MQTT retain flag.
    pub retain: bool,
    /// Priority class; the outbox does not look at it.
    pub class: u8,
    /// Identity, boot.start.sequence; the outbox does not look at it.
    pub id: String,
    /// MQTT properties, encoded by the caller; the outbox does not look at them.
    pub properties: Vec<u8>,
}

/// Bytes of a frame before its body.
pub(super) const HEAD_BYTES: usize = 20;
/// The longest chain: three numbers of ten bytes.
pub(super) const CHAIN_BYTES: usize = 30;
/// Bytes of a number in its longest form.
const NUMBER_BYTES: usize = 10;

/// What a frame says about the log around it; all three are smaller than its own seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub previous: u64,
    pub durable: u64,
    pub released: u64,
}

/// A frame whose checks hold, at the beginning of the bytes it was found in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub seq: u64,
    pub chain: Chain,
    /// What follows the chain.
    pub content: &'a [u8],
    /// Length of the whole frame.
    pub bytes: usize,
}

/// Everything of a record but its seq and its chain. Refuses nothing.
pub(super) fn encode_content(record: &Record) -> Vec<u8> {
    let variable = record.topic.len() + record.id.len() + record.properties.len() + record.payload.len();
    let mut out = Vec::with_capacity(variable + 4 * NUMBER_BYTES + 3);
    put_number(&mut out, record.accepted);
    out.extend([record.qos, u8::from(record.retain), record.class]);
    for part in [record.topic.as_bytes(), record.id.as_bytes(), &record.properties] {
        put_number(&mut out, part.len() as u64);
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&record.payload);
    out
}

/// The record of a content that [`encode_content`] made; `None` for other bytes.
pub(super) fn decode_content(seq: u64, mut bytes: &[u8]) -> Option<Record> {
    let accepted = take_number(&mut bytes)?;
    let (&[qos, retain, class], rest) = bytes.split_first_chunk()?;
    bytes = rest;
    let topic = String::from_utf8(take_part(&mut bytes)?.to_vec()).ok()?;
    let id = String::from_utf8(take_part(&mut bytes)?.to_vec()).ok()?;
    let properties = take_part(&mut bytes)?.to_vec();
    let payload = bytes.to_vec();
    Some(Record { seq: Seq(seq), accepted, topic, payload, qos, retain: retain != 0, class, id, properties })
}

/// When the record of this content was accepted.
pub(super) fn accepted(mut content: &[u8]) -> Option<u64> {
    take_number(&mut content)
}

/// Adds a frame to `out`; its length comes back.
pub(super) fn seal(out: &mut Vec<u8>, salt: u64, seq: u64, chain: Chain, content: &[u8]) -> usize {
    let mut body = Vec::with_capacity(CHAIN_BYTES + content.len());
    for other in [chain.previous, chain.durable, chain.released] {
        put_number(&mut body, seq.saturating_sub(other));
    }
    body.extend_from_slice(content);
    let mut head = [0; HEAD_BYTES - 4];
    let fields = check(salt, &body).to_le_bytes().into_iter();
    let fields = fields.chain((body.len() as u32).to_le_bytes()).chain(seq.to_le_bytes());
    head.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    out.extend_from_slice(&check(salt >> 32, &head).to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(&body);
    HEAD_BYTES + body.len()
}

/// The frame at the beginning of `bytes`, if its checks hold.
pub(super) fn frame(bytes: &[u8], salt: u64) -> Option<Frame<'_>> {
    let (head_check, after) = bytes.split_first_chunk::<4>()?;
    let head = after.first_chunk::<{ HEAD_BYTES - 4 }>()?;
    let mut fields = head.as_slice();
    let body_check = u32::from_le_bytes(take_array(&mut fields)?);
    let length = u32::from_le_bytes(take_array(&mut fields)?) as usize;
    // Before the check: nearly every wrong place ends here, at the cost of one comparison.
    let mut body = bytes.get(HEAD_BYTES..)?.get(..length).filter(|body| !body.is_empty())?;
    if check(salt >> 32, head) != u32::from_le_bytes(*head_check) || check(salt, body) != body_check {
        return None;
    }
    // A log that believed in a number beyond all numbers could take nothing any more.
    let seq = Some(u64::from_le_bytes(take_array(&mut fields)?)).filter(|seq| *seq < NUMBER_MAX)?;
    let mut before = || Some(seq.saturating_sub(take_number(&mut body)?));
    let chain = Chain { previous: before()?, durable: before()?, released: before()? };
    Some(Frame { seq, chain, content: body, bytes: HEAD_BYTES + length })
}

fn check(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(salt as u32, bytes)
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..NUMBER_BYTES {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take_part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_number(bytes)?).ok()?;
    let (part, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(part)
}

pub(super) fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*array)
}
