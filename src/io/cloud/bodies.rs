//! Where the messages of applications come from, and where is told what becomes of them.
//!
//! One face for the corridor and for tests. It keeps nothing and decides nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use switchback_control::Seq;

use crate::corridor::{Body, Corridor, Pledge};

/// Where message bodies come from, and where is told what becomes of them.
pub trait Bodies: Send + Sync + 'static {
    /// The body of an admitted message, where memory has it.
    fn held(&self, seq: Seq) -> Option<Body>;
    /// As `Corridor::read`.
    fn read(&self, seqs: Vec<Seq>) -> impl Future<Output = Vec<Option<Body>>> + Send;
    /// Its last byte was handed to the kernel.
    fn sent(&self, seq: Seq);
    /// The server will never take it, and why; told before `Event::Rejected`.
    fn rejected(&self, seq: Seq, why: String);
    /// Makes a step of QoS 2 durable; false when the disk cannot.
    fn pledge(&self, pledge: Pledge) -> impl Future<Output = bool> + Send;
    /// The exchange under this identifier is over.
    fn redeem(&self, id: u16);
    /// No exchange is open.
    fn redeem_all(&self);
}

impl Bodies for Corridor {
    fn held(&self, seq: Seq) -> Option<Body> {
        Corridor::held(self, seq)
    }

    fn read(&self, seqs: Vec<Seq>) -> impl Future<Output = Vec<Option<Body>>> + Send {
        Corridor::read(self, seqs)
    }

    fn sent(&self, seq: Seq) {
        Corridor::sent(self, seq);
    }

    fn rejected(&self, seq: Seq, why: String) {
        Corridor::rejected(self, seq, why);
    }

    fn pledge(&self, pledge: Pledge) -> impl Future<Output = bool> + Send {
        Corridor::pledge(self, pledge)
    }

    fn redeem(&self, id: u16) {
        Corridor::redeem(self, id);
    }

    fn redeem_all(&self) {
        Corridor::redeem_all(self);
    }
}

/// `Bodies` of any kind, whose answers may be waited for anywhere.
pub trait AnyBodies: Send + Sync {
    fn held(&self, seq: Seq) -> Option<Body>;
    fn read(&self, seqs: Vec<Seq>) -> Answer<Vec<Option<Body>>>;
    fn sent(&self, seq: Seq);
    fn rejected(&self, seq: Seq, why: String);
    fn pledge(&self, pledge: Pledge) -> Answer<bool>;
    fn redeem(&self, id: u16);
    fn redeem_all(&self);
}

pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<B: Bodies> AnyBodies for Arc<B> {
    fn held(&self, seq: Seq) -> Option<Body> {
        self.as_ref().held(seq)
    }

    fn read(&self, seqs: Vec<Seq>) -> Answer<Vec<Option<Body>>> {
        let bodies = self.clone();
        Box::pin(async move { bodies.as_ref().read(seqs).await })
    }

    fn sent(&self, seq: Seq) {
        self.as_ref().sent(seq);
    }

    fn rejected(&self, seq: Seq, why: String) {
        self.as_ref().rejected(seq, why);
    }

    fn pledge(&self, pledge: Pledge) -> Answer<bool> {
        let bodies = self.clone();
        Box::pin(async move { bodies.as_ref().pledge(pledge).await })
    }

    fn redeem(&self, id: u16) {
        self.as_ref().redeem(id);
    }

    fn redeem_all(&self) {
        self.as_ref().redeem_all();
    }
}
