//! switchback: keeps a Linux gateway connected to its cloud.

#![forbid(unsafe_op_in_unsafe_fn)]

pub mod api;
pub mod classify;
pub mod cli;
pub mod config;
pub mod corridor;
pub mod daemon;
pub mod desk;
pub mod doctor;
pub mod io;
pub mod journal;
pub mod outbox;
pub mod picture;
pub mod sorting;
pub mod standing;
pub mod starts;
pub mod topics;
pub mod uplinks;
pub use switchback_control as control;

/// Every parser against bytes that nobody meant to write. In here, because most parsers are nobody's business outside.
#[cfg(test)]
#[path = "../tests/fuzzing/mod.rs"]
mod fuzzing;
