//! switchback: keeps a Linux gateway connected to its cloud.

#![forbid(unsafe_op_in_unsafe_fn)]

pub mod api;
pub mod cli;
pub mod config;
pub mod io;
pub use switchback_control as control;
