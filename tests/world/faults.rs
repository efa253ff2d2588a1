//! What goes wrong, how often, for how long, and the calm at the end.
//!
//! Each fault ends by itself after a while drawn evenly on a logarithmic scale, so that short ones and ones longer
//! than every limit of the heart both occur; several overlap.

use switchback_control::{Class, Reason};

use super::cloud::{self, Mode};
use super::network;
use super::people;
use super::plan::{self, Profile, Rate};
use super::{What, World};

#[derive(Clone, Copy, Debug)]
pub enum Undo {
    Signal(usize),
    Path(usize, u64),
    Dhcp(usize),
    Manager,
    Unwilling,
    Nmcli(usize),
    Plug(usize),
    Lease(usize),
    Refusal(u64),
    Slow(u64),
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Carrier,
    Flap,
    AccessPoint,
    Silent,
    OneWay,
    Lossy,
    Slow,
    Firewall,
    Portal,
    Names,
    Killed,
    Frozen,
    HostGone,
    SlowAcks,
    Refuses,
    OtherAge,
    Thief,
    Window,
    ManagerRestarts,
    ManagerLies,
    Unwilling,
    Dhcp,
    Nmcli,
    Plug,
    Lease,
    StoreSlow,
    StoreFails,
    Stall,
    Crash,
    /// What NetworkManager believes about cost.
    Cost,
    /// The process dies, and the next one cannot read its store.
    Unreadable,
}

use Fault::*;

const MIXED: &[Fault] = &[
    Carrier,
    Carrier,
    Carrier,
    Flap,
    AccessPoint,
    Silent,
    Silent,
    Silent,
    OneWay,
    Lossy,
    Lossy,
    Slow,
    Firewall,
    Portal,
    Names,
    Killed,
    Killed,
    Frozen,
    HostGone,
    SlowAcks,
    Refuses,
    OtherAge,
    Thief,
    Window,
    ManagerRestarts,
    ManagerLies,
    ManagerLies,
    Unwilling,
    Dhcp,
    Nmcli,
    Plug,
    Lease,
    StoreSlow,
    StoreFails,
    Stall,
    Crash,
];
const CLOUD: &[Fault] = &[Killed, Killed, Killed, Frozen, HostGone, SlowAcks, Refuses, Thief, Window];
const PATHS: &[Fault] =
    &[Carrier, AccessPoint, Silent, Silent, OneWay, Lossy, Slow, Firewall, Portal, Names, Dhcp, Lease, Plug];
const FLAPPING: &[Fault] = &[Carrier, Flap, Flap, Silent];
const STORE: &[Fault] = &[StoreSlow, StoreFails, StoreFails, Crash, Stall, Killed, SlowAcks];
const LOSSY: &[Fault] = &[Window, ManagerLies];

impl World {
    pub fn start_faults(&mut self) {
        if self.plan.profile == Profile::Lossy {
            // One kind of loss for the whole run: what R-LV-8 speaks of.
            let loss = *self.dice.pick(&[10, 20, 50, 50]);
            self.oracle.false_moves_allowed = if loss > 20 { 6 } else { 2 };
            for net in &mut self.nets {
                net.path.loss = [loss; 2];
                net.path.healthy_since = u64::MAX;
            }
        }
        if let Profile::Rate(_) = self.plan.profile {
            return self.after(60_000, What::Fault);
        }
        self.next_fault();
    }

    fn next_fault(&mut self) {
        let mean = 3_600_000 / self.plan.faults_per_hour;
        // Mostly close together; now and then there is a pause long enough to see what comes of it.
        let most = if self.dice.chance(200) { 6 * mean } else { mean };
        let delay = self.dice.between(0, most);
        self.after(delay, What::Fault);
    }

    pub fn fault(&mut self) {
        if self.calm {
            return;
        }
        if let Profile::Rate(rate) = self.plan.profile {
            return self.only_loss(rate);
        }
        self.next_fault();
        let kinds = match self.plan.profile {
            Profile::Mixed => MIXED,
            Profile::Cloud => CLOUD,
            Profile::Paths => PATHS,
            Profile::Flapping => FLAPPING,
            Profile::Store => STORE,
            Profile::Lossy | Profile::Rate(_) => LOSSY,
        };
        let mut fault = *self.dice.pick(kinds);
        if self.plan.has_lanes && self.lots.chance(80) {
            fault = *self.lots.pick(&[Cost, Cost, StoreSlow, Unreadable]);
        }
        let net = self.dice.between(0, self.nets.len() as u64 - 1) as usize;
        self.note(|w| format!("# {} fault {fault:?} {}", super::stamp(w.now), w.nets[net].device));
        self.summary.faults += 1;
        self.strike(fault, net);
    }

    /// The one path of a `Profile::Rate` begins to lose packets; later, perhaps, all of them.
    fn only_loss(&mut self, rate: Rate) {
        let now = self.now;
        let path = &mut self.nets[0].path;
        path.healthy_since = u64::MAX;
        path.loss = rate.loss;
        match rate.dies {
            Some(at) if now < at => self.after(at - now, What::Fault),
            Some(_) => path.mode = Mode::Silent,
            None => {}
        }
        self.note(|w| format!("# {} {:?}", super::stamp(w.now), w.nets[0].path));
    }

    fn strike(&mut self, fault: Fault, net: usize) {
        match fault {
            Carrier => {
                self.set_signal(net, false);
                self.undo_after(50, 900_000, Undo::Signal(net));
            }
            Flap => {
                let mut at = 0;
                for _ in 0..self.dice.between(2, 12) {
                    at += self.dice.spread(20, 40_000);
                    self.after(at, What::Flap(net));
                }
            }
            AccessPoint => self.access_point_lost(net),
            Silent => self.path(net, Mode::Silent),
            OneWay => {
                let mode = *self.dice.pick(&[Mode::DownLost, Mode::UpLost]);
                self.path(net, mode);
            }
            Firewall => self.path(net, Mode::Refused),
            Portal => self.path(net, Mode::Portal),
            Names => self.path(net, Mode::NoNames),
            Lossy => {
                let loss = *self.dice.pick(&[5, 20, 50, 100, 300, 500]);
                self.nets[net].path.loss = *self.dice.pick(&[[loss, loss], [loss, loss], [loss, 0], [0, loss]]);
                self.touch_path(net);
            }
            Slow => {
                let factor = self.dice.spread(2, 60);
                self.nets[net].path.slow(factor);
                self.touch_path(net);
            }
            Killed => {
                self.broker_dies();
                let back = self.dice.spread(30, 900_000);
                self.after(back, What::Broker(cloud::Change::Restart));
            }
            Frozen => {
                if self.broker.up {
                    self.broker.frozen = true;
                }
                let back = self.dice.spread(300, 300_000);
                self.after(back, What::Broker(cloud::Change::Thaw));
            }
            HostGone => {
                self.broker.host = false;
                let back = self.dice.spread(100, 600_000);
                self.after(back, What::Broker(cloud::Change::HostBack));
            }
            SlowAcks => {
                self.broker.generation += 1;
                self.broker.slow = self.dice.spread(100, 20_000);
                let number = self.broker.generation;
                self.undo_after(5_000, 600_000, Undo::Slow(number));
            }
            Refuses => {
                self.broker.generation += 1;
                self.broker.refuse = Some(*self.dice.pick(&[
                    Reason::Authentication,
                    Reason::Authentication,
                    Reason::Refused,
                    Reason::ServerMoved,
                ]));
                let number = self.broker.generation;
                self.undo_after(1_000, 900_000, Undo::Refusal(number));
            }
            OtherAge => {
                self.broker_dies();
                self.broker.only_v311 = !self.broker.only_v311;
                self.after(200, What::Broker(cloud::Change::Restart));
            }
            Thief => {
                for _ in 0..self.dice.between(1, 6) {
                    let at = self.dice.spread(1, 120_000);
                    self.after(at, What::Broker(cloud::Change::Thief));
                }
            }
            Window => self.broker.window = *self.dice.pick(&[65535, 100, 10, 2, 1]).max(&self.broker.window),
            ManagerRestarts => {
                self.manager_goes();
                self.undo_after(100, 60_000, Undo::Manager);
            }
            ManagerLies => {
                let length = self.dice.spread(100, 120_000);
                self.manager_lies(net, length);
            }
            Unwilling => {
                self.manager.unwilling = true;
                self.undo_after(1_000, 300_000, Undo::Unwilling);
            }
            Dhcp => {
                self.nets[net].dhcp_dead = true;
                if self.dice.chance(500) {
                    self.lease(net, false);
                }
                self.undo_after(1_000, 600_000, Undo::Dhcp(net));
            }
            Nmcli => {
                self.nmcli(net, false);
                self.undo_after(1_000, 1_800_000, Undo::Nmcli(net));
            }
            Plug => {
                if self.nets[net].class != Class::Ethernet || self.dice.chance(300) {
                    self.plug(net, false);
                    self.undo_after(200, 900_000, Undo::Plug(net));
                }
            }
            Lease => {
                self.lease(net, false);
                self.undo_after(100, 120_000, Undo::Lease(net));
            }
            StoreSlow => {
                self.store.slow = true;
                let back = self.dice.spread(1_000, 600_000);
                self.after(back, What::StoreHeals);
            }
            StoreFails => {
                self.store.failing = Some(self.dice.chance(500));
                let back = self.dice.spread(100, 900_000);
                self.after(back, What::StoreHeals);
            }
            Stall => {
                let length = self.dice.spread(20, 60_000);
                self.stall(length);
            }
            Cost => {
                // It matters most where the session is.
                let session = self.oracle.session.and_then(|session| self.conns.get(&session)).map(|conn| conn.net);
                let net = session.filter(|_| self.lots.chance(500)).unwrap_or(net);
                self.nets[net].metered = *self.lots.pick(&[None, Some(true), Some(false)]);
                self.report(net);
            }
            Unreadable => {
                let pause = self.lots.spread(100, 60_000);
                self.store.spoiled = self.running();
                self.crash(pause);
                let back = pause + self.lots.spread(1_000, 1_800_000);
                self.after(back, What::StoreHeals);
            }
            Crash => {
                let pause = self.dice.spread(100, 60_000);
                self.crash(pause);
            }
        }
        if !self.broker.well() {
            self.broker.healthy_since = u64::MAX;
        }
    }

    /// Away for a moment.
    pub fn flap(&mut self, net: usize) {
        if self.calm {
            return;
        }
        self.summary.faults += 1;
        self.set_signal(net, false);
        self.undo_after(20, 20_000, Undo::Signal(net));
    }

    fn path(&mut self, net: usize, mode: Mode) {
        self.nets[net].path.mode = mode;
        self.touch_path(net);
    }

    pub fn touch_path(&mut self, net: usize) {
        let path = &mut self.nets[net].path;
        path.faults += 1;
        path.healthy_since = u64::MAX;
        let number = path.faults;
        self.undo_after(200, 900_000, Undo::Path(net, number));
    }

    fn undo_after(&mut self, low: u64, high: u64, undo: Undo) {
        let delay = self.dice.spread(low, high);
        self.after(delay, What::Undo(undo));
    }

    pub fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Signal(net) => self.set_signal(net, true),
            Undo::Path(net, number) if self.nets[net].path.faults == number => {
                let now = self.now;
                self.nets[net].path.heal(now);
                self.nets[net].path.healthy_since = now;
            }
            Undo::Dhcp(net) => {
                self.nets[net].dhcp_dead = false;
                self.lease(net, true);
            }
            Undo::Manager => self.manager_comes(),
            Undo::Unwilling => self.manager.unwilling = false,
            Undo::Nmcli(net) => self.nmcli(net, true),
            Undo::Plug(net) => self.plug(net, true),
            Undo::Lease(net) => self.lease(net, true),
            Undo::Refusal(number) if self.broker.generation == number => self.broker.refuse = None,
            Undo::Slow(number) if self.broker.generation == number => self.broker.slow = 0,
            Undo::Path(..) | Undo::Refusal(_) | Undo::Slow(_) => {}
        }
        if self.broker.well() && self.broker.healthy_since == u64::MAX {
            self.broker.healthy_since = self.now;
        }
    }

    /// No more faults; everything that was broken is mended, and the operator wants a connection.
    pub fn become_calm(&mut self) {
        self.calm = true;
        self.note(|w| format!("# {} calm", super::stamp(w.now)));
        self.calm_network();
        self.calm_cloud();
        self.store_heals();
        self.free_the_way_back();
        self.after(100, What::People(people::Change::Connect));
        // In manual mode the first may come before anything is ready.
        self.after(1_200_000, What::People(people::Change::Connect));
        self.after(plan::CALM - 480_000, What::People(people::Change::Flood));
        self.after(plan::CALM - 460_000, What::People(people::Change::Flush));
        // Whatever is still to be undone finds everything well; a device that could not be told of is told of again.
        for net in 0..self.nets.len() {
            self.after(90_000, What::Network(network::Change::Truth(net)));
        }
    }
}
