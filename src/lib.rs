//! switchback: keeps a Linux gateway connected to its cloud.

#![forbid(unsafe_op_in_unsafe_fn)]

pub mod api;
pub mod classify;
pub mod config;
pub mod corridor;
pub mod io;
pub mod outbox;
pub mod uplinks;
pub mod topics;
pub use switchback_control as control;
