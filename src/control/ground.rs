//! What the walk stands on during one turn: the event, the picture of the world, the memory of it, and the list to write on.
//!
//! Made by `Control::step` for each turn and gone after it. It decides nothing.

use core::time::Duration;

use crate::event::{Attempt, Event};
use crate::interfaces::{Interfaces, Readiness};
use crate::name::{Class, Name};
use crate::outage::Outages;
use crate::reachability::Reachability;
use crate::settings::{Settings, Uplink};
use crate::status::DeliveryStatus;
use crate::switch::Switches;
use crate::time::Instant;
use crate::turn::Turn;

/// What delivery says of the messages, this event already counted.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// When the oldest message in flight was sent.
    pub oldest_sent: Option<Instant>,
    /// When the oldest in flight was sent, even if the server is known to have it.
    pub waits_since: Option<Instant>,
    /// Nothing is in flight.
    pub quiet: bool,
    /// And nothing waits that could go out.
    pub empty: bool,
    /// The round trip that this event's acknowledgement shows.
    pub sample: Option<Duration>,
    /// The counts, this event not yet among them.
    pub tally: DeliveryStatus,
}

/// What the walk concludes for delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Messages go out on this connection.
    Open {
        attempt: Attempt,
        interface: Name,
        window: u16,
    },
    Shut,
    /// What is in flight is let finish, and nothing new goes out.
    Finish,
}

/// What the walk may use during one turn.
pub struct Ground<'a, 't> {
    pub turn: &'a mut Turn<'t>,
    pub event: &'a Event,
    pub interfaces: &'a Interfaces,
    pub walk: &'a [Name],
    pub reach: &'a mut Reachability,
    pub outages: &'a mut Outages,
    pub switches: &'a mut Switches,
    pub flow: Flow,
    /// Interfaces that became ready through this event.
    pub hope: &'a [Name],
    pub line: Option<Line>,
    /// A connection was hung up whose CONNECT may yet reach the server, and take our own session over.
    pub abandoned: bool,
}

/// What a deadline is computed from.
pub struct View<'a> {
    pub now: Instant,
    pub settings: &'a Settings,
    pub interfaces: &'a Interfaces,
    pub walk: &'a [Name],
    pub reach: &'a Reachability,
    pub oldest_sent: Option<Instant>,
}

impl Ground<'_, '_> {
    /// The same, to look at only.
    pub fn view(&self) -> View<'_> {
        View {
            now: self.turn.now,
            settings: self.turn.settings,
            interfaces: self.interfaces,
            walk: self.walk,
            reach: self.reach,
            oldest_sent: self.flow.oldest_sent,
        }
    }

    /// The settings of an interface.
    pub fn uplink(&self, name: Name) -> Uplink {
        let class = self.interfaces.class(name).unwrap_or(Class::Ethernet);
        *self.turn.settings.uplink(self.interfaces.spoken(name), class)
    }

    /// The interface an operator means: by its name, or the first of a class, those that are ready first.
    pub fn named(&self, name: Name) -> Option<Name> {
        let class: Option<Class> = name.as_str().parse().ok();
        let of_class = || self.walk.iter().copied().filter(|n| class.is_some() && self.interfaces.class(*n) == class);
        let ready = || of_class().find(|n| self.interfaces.readiness(*n) == Readiness::Ready);
        self.interfaces.find(name).or_else(ready).or_else(|| of_class().next())
    }

    /// Interfaces that could be dialled through now.
    pub fn ready_count(&self) -> usize {
        self.walk.iter().filter(|n| self.interfaces.readiness(**n) == Readiness::Ready).count()
    }
}
