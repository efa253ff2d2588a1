//! When a message is too old to be sent (R-SF-6).
//!
//! Its message expiry interval counts from the moment at which we took it on; what is left of it goes on with it (MQTT
//! 5.0 section 3.3.2.3.3). Pure. A wall clock that was or is certainly wrong makes nothing old.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::io::clock::SET_SINCE;
pub use crate::io::packet::lower_expiry as lower;

/// Whole seconds since a message was accepted, at `accepted` milliseconds after the epoch.
pub fn of(accepted: u64) -> u32 {
    between(accepted, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}

fn between(accepted: u64, now: u64) -> u32 {
    if accepted < SET_SINCE { 0 } else { u32::try_from(now.saturating_sub(accepted) / 1_000).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use flowsdk::mqtt_serde::mqttv5::common::properties::Property;

    use super::*;

    #[test]
    fn what_is_left_goes_on_and_nothing_left_is_the_end() {
        let with = |seconds| [Property::ContentType("x".into()), Property::MessageExpiryInterval(seconds)];
        let mut properties = with(10);
        assert!(lower(&mut properties, 9));
        assert_eq!(properties, with(1));
        assert!(!lower(&mut with(10), 10) && !lower(&mut with(10), u32::MAX));
        assert!(lower(&mut with(0), 0) && lower(&mut [], u32::MAX));
    }

    #[test]
    fn a_clock_that_was_not_set_makes_nothing_old() {
        let then = SET_SINCE + 1_000_000;
        assert_eq!(between(then, then + 2_999), 2);
        assert_eq!((between(then, then - 1), between(then, 0)), (0, 0));
        assert_eq!((between(0, then), between(SET_SINCE - 1, then)), (0, 0));
        assert_eq!(between(then, u64::MAX), u32::MAX);
    }
}
