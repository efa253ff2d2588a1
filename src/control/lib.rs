//! The heart of switchback: decides, never touches.
//!
//! See the individual modules; `step` is added as the stairs are built.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod action;
pub mod event;
pub mod name;
pub mod reason;
pub mod settings;
pub mod status;
pub mod time;

pub use action::{Action, Goodbye, Notice, Outcome, Saved};
pub use event::{Attempt, Command, Device, Event, Request, Seq, Stage, Step, Ticket, Version};
pub use name::{Class, Name, NotAName, Selector};
pub use reason::{Blame, Reason};
pub use settings::{Failback, Mode, Settings, Standby, Start, Uplink};
pub use status::Status;
pub use time::Instant;
