//! When a message is too old to be sent (R-SF-6).
//!
//! Its message expiry interval counts from the moment at which we took it on; what is left of it goes on with it (MQTT
//! 5.0 section 3.3.2.3.3). A wall clock that was or is certainly wrong makes nothing old.

use crate::corridor::Body;
use crate::io::clock;
pub use crate::io::packet::lower_expiry as lower;

/// Whole seconds since a message was accepted, at least.
pub fn of(body: &Body) -> u32 {
    u32::try_from(clock::age_of(body.accepted, &body.id, clock::least_wall()) / 1_000).unwrap_or(u32::MAX)
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
}
