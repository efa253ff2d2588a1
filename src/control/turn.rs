//! One turn of the wheel: what every stair may use while it takes an event in.

use alloc::vec::Vec;

use crate::action::Action;
use crate::backoff::Dice;
use crate::event::Attempt;
use crate::settings::Settings;
use crate::time::Instant;

/// The moment, the settings, the next number, the dice, and the list of actions being written.
pub struct Turn<'a> {
    pub now: Instant,
    pub settings: &'a Settings,
    pub dice: &'a mut Dice,
    pub numbers: &'a mut u64,
    pub actions: &'a mut Vec<Action>,
}

impl Turn<'_> {
    /// The number of a new try.
    pub fn number(&mut self) -> Attempt {
        *self.numbers = self.numbers.saturating_add(1);
        Attempt(*self.numbers)
    }

    /// Writes an action on the list.
    pub fn ask(&mut self, action: Action) {
        self.actions.push(action);
    }
}
