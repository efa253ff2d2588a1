//! Interfaces as they truly are, and what the kernel and NetworkManager say of them.
//!
//! The kernel speaks within a second, NetworkManager up to seconds later and not always the truth. Activation goes
//! through its steps, fails, hangs, is retried by NetworkManager itself; DHCP may never answer.

use switchback_control::{Attempt, Class, Device, Event, Name, Reason, Stage, Step};

use super::cloud::{Mode, Path};
use super::plan::{Plan, Profile};
use super::{Dice, Source, What, World, name};

#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// The activation with this number goes on.
    Activation(usize, u64),
    Autoconnect(usize, u64),
    /// The carrier has been away for six seconds.
    CarrierWait(usize, u64),
    /// Something was reported wrongly, and is put right.
    Truth(usize),
    AfterFailure(usize, u64),
}

#[derive(Clone, Debug)]
pub struct Net {
    /// As NetworkManager calls the device.
    pub device: Name,
    /// As the kernel calls its IP interface.
    pub kernel: Name,
    pub class: Class,
    pub present: bool,
    /// A plugged cable, an access point in reach, a radio network.
    pub signal: bool,
    /// What the kernel calls carrier.
    pub link: bool,
    pub address: bool,
    pub stage: Stage,
    /// Sockets made before belong to an address that is gone.
    pub epoch: u64,
    activation: u64,
    waits: u64,
    /// NetworkManager does not activate it by itself.
    blocked: bool,
    pub dhcp_dead: bool,
    /// NetworkManager's word about cost.
    pub metered: Option<bool>,
    pub path: Path,
}

#[derive(Debug)]
pub struct Manager {
    pub running: bool,
    /// Devices that vanished while it was away: it says so when it is back.
    vanished: Vec<Name>,
    pub unwilling: bool,
}

impl Default for Manager {
    fn default() -> Manager {
        Manager { running: true, vanished: Vec::new(), unwilling: false }
    }
}

pub fn nets(plan: &Plan, dice: &mut Dice) -> Vec<Net> {
    let make = |(device, ip, class): &(&str, Option<&str>, Class)| Net {
        device: name(device),
        kernel: name(ip.unwrap_or(device)),
        class: *class,
        present: true,
        signal: true,
        link: false,
        address: false,
        stage: Stage::Unavailable(Reason::NoLink),
        epoch: 0,
        activation: 0,
        waits: 0,
        blocked: false,
        dhcp_dead: false,
        metered: None,
        path: Path::new(*class, dice),
    };
    let mut nets: Vec<Net> = plan.interfaces.iter().map(make).collect();
    if let Profile::Rate(rate) = plan.profile {
        nets.iter_mut().for_each(|net| net.path = Path::of(rate.rtt));
    }
    nets
}

impl Net {
    /// What people call it.
    pub fn spoken(&self) -> Name {
        self.kernel
    }

    /// Bytes can leave and come in, as far as this machine is concerned.
    pub fn usable(&self) -> bool {
        self.present && self.link && self.address
    }
}

impl World {
    pub fn start_network(&mut self) {
        for index in 0..self.nets.len() {
            // Most gateways find their uplinks ready, some boot together with them.
            let ready = self.dice.chance(600) || matches!(self.plan.profile, Profile::Rate(_));
            let net = &mut self.nets[index];
            net.stage = Stage::Disconnected { profile: true, by_user: false };
            net.link = net.class == Class::Ethernet;
            if ready {
                net.link = true;
                net.address = true;
                net.stage = Stage::Activated;
            } else {
                self.autoconnect(index, 8_000);
            }
        }
    }

    /// What a starting daemon reads from the kernel and from NetworkManager.
    pub fn tell_everything(&mut self) {
        let running = self.manager.running;
        self.tell(Source::NetworkManager, 0, Event::NetworkManagerChanged { running });
        for index in 0..self.nets.len() {
            if !self.nets[index].present {
                continue;
            }
            let net = self.nets[index].clone();
            if net.class != Class::Cell || net.link {
                self.tell(Source::Kernel, 0, Event::LinkChanged { interface: net.kernel, up: net.link });
                self.tell(Source::Kernel, 0, Event::AddressChanged { interface: net.kernel, present: net.address });
            }
            let delay = self.dice.spread(1, 300);
            self.report_after(index, delay);
        }
    }

    pub fn report(&mut self, index: usize) {
        let delay = if self.dice.chance(50) { self.dice.spread(10, 3000) } else { self.dice.between(0, 5) };
        self.report_after(index, delay);
    }

    fn report_after(&mut self, index: usize, delay: u64) {
        let net = &self.nets[index];
        if !self.manager.running || !net.present || !self.running() {
            return;
        }
        let device = self.device(index);
        let interface = net.device;
        self.tell(Source::NetworkManager, delay, Event::DeviceSeen { interface, device });
    }

    fn device(&self, index: usize) -> Device {
        let net = &self.nets[index];
        let ip = (net.kernel != net.device && (net.link || net.stage == Stage::Activated)).then_some(net.kernel);
        Device { class: net.class, ip_interface: ip, stage: net.stage, address: net.address, metered: net.metered }
    }

    fn kernel_delay(&mut self) -> u64 {
        if self.dice.chance(100) { self.dice.between(5, 930) } else { self.dice.between(0, 4) }
    }

    fn set_link(&mut self, index: usize, up: bool) {
        let (now, delay) = (self.now, self.kernel_delay());
        let net = &mut self.nets[index];
        if net.link == up {
            return;
        }
        net.link = up;
        net.path.healthy_since = net.path.healthy_since.max(now);
        let interface = net.kernel;
        self.tell(Source::Kernel, delay, Event::LinkChanged { interface, up });
    }

    fn set_address(&mut self, index: usize, present: bool) {
        let (now, delay) = (self.now, self.kernel_delay());
        let net = &mut self.nets[index];
        if net.address == present {
            return;
        }
        net.address = present;
        net.path.healthy_since = net.path.healthy_since.max(now);
        if !present {
            net.epoch += 1;
        }
        let interface = net.kernel;
        self.tell(Source::Kernel, delay, Event::AddressChanged { interface, present });
    }

    fn set_stage(&mut self, index: usize, stage: Stage) {
        self.nets[index].stage = stage;
        self.report(index);
    }

    /// NetworkManager's own idea of bringing it up.
    fn autoconnect(&mut self, index: usize, within: u64) {
        let delay = self.dice.between(10, within);
        let number = self.nets[index].activation;
        self.after(delay, What::Network(Change::Autoconnect(index, number)));
    }

    pub fn network(&mut self, change: Change) {
        match change {
            Change::Activation(index, number) => self.activation_goes_on(index, number),
            Change::Autoconnect(index, number) => {
                let net = &self.nets[index];
                let idle = matches!(net.stage, Stage::Disconnected { by_user: false, .. });
                if self.manager.running && net.present && !net.blocked && net.activation == number && idle {
                    self.start_activation(index);
                } else if !self.manager.running {
                    self.autoconnect(index, 5_000);
                }
            }
            Change::CarrierWait(index, number) => {
                let net = &self.nets[index];
                if net.waits == number && !net.signal && net.present {
                    self.take_down(index, Stage::Unavailable(Reason::NoLink));
                }
            }
            Change::Truth(index) => self.report(index),
            Change::AfterFailure(index, number) => {
                if self.nets[index].activation == number && matches!(self.nets[index].stage, Stage::Failed(_)) {
                    self.set_stage(index, Stage::Disconnected { profile: true, by_user: false });
                    // Four quick retries, then five minutes: here by chance.
                    let within = if self.dice.chance(250) && !self.calm { 300_000 } else { 10_000 };
                    self.autoconnect(index, within);
                }
            }
        }
    }

    fn start_activation(&mut self, index: usize) {
        let net = &mut self.nets[index];
        net.activation += 1;
        net.blocked = false;
        let first = match net.class {
            Class::Ethernet => Step::Addressing,
            Class::Wifi => Step::Joining,
            Class::Cell => Step::Registering,
        };
        self.set_stage(index, Stage::Activating(first));
        self.activation_step(index, first);
    }

    fn activation_step(&mut self, index: usize, step: Step) {
        let slow = !self.calm && self.dice.chance(60);
        let delay = match step {
            // Longer than any limit of the heart, now and then.
            _ if slow => self.dice.spread(10_000, 400_000),
            Step::Registering => self.dice.spread(500, 20_000),
            Step::Addressing if self.nets[index].dhcp_dead => 45_000,
            _ => self.dice.spread(50, 4_000),
        };
        let number = self.nets[index].activation;
        self.after(delay, What::Network(Change::Activation(index, number)));
    }

    fn activation_goes_on(&mut self, index: usize, number: u64) {
        let net = &self.nets[index];
        if net.activation != number || !net.present {
            return;
        }
        let Stage::Activating(step) = net.stage else { return };
        let (signal, dhcp_dead) = (net.signal, net.dhcp_dead);
        let unlucky = !self.calm && self.dice.chance(40);
        match step {
            Step::Registering if !signal || unlucky => self.activation_failed(index, Reason::NoRegistration),
            Step::Registering => self.next_step(index, Step::Bearer),
            Step::Bearer if unlucky => self.activation_failed(index, Reason::NoBearer),
            Step::Joining if !signal => self.activation_failed(index, Reason::NoLink),
            Step::Joining if unlucky => self.activation_failed(index, Reason::NoCredentials),
            Step::Joining | Step::Bearer => {
                self.set_link(index, true);
                self.next_step(index, Step::Addressing);
            }
            _ if dhcp_dead || !signal => self.activation_failed(index, Reason::NoAddress),
            _ => {
                self.set_link(index, true);
                self.set_address(index, true);
                self.set_stage(index, Stage::Activated);
            }
        }
    }

    fn next_step(&mut self, index: usize, step: Step) {
        self.set_stage(index, Stage::Activating(step));
        self.activation_step(index, step);
    }

    fn activation_failed(&mut self, index: usize, reason: Reason) {
        self.take_down(index, Stage::Failed(reason));
        let number = self.nets[index].activation;
        let delay = self.dice.between(0, 1_000);
        self.after(delay, What::Network(Change::AfterFailure(index, number)));
    }

    /// The connection of the device ends, and it is left at `stage`.
    fn take_down(&mut self, index: usize, stage: Stage) {
        self.nets[index].activation += 1;
        self.set_address(index, false);
        if self.nets[index].class != Class::Ethernet {
            self.set_link(index, false);
        }
        self.set_stage(index, stage);
    }

    /// The cable, the access point, the radio network.
    pub fn set_signal(&mut self, index: usize, signal: bool) {
        if self.nets[index].signal == signal {
            return;
        }
        self.nets[index].signal = signal;
        self.nets[index].waits += 1;
        if !self.nets[index].present {
            return;
        }
        let active = matches!(self.nets[index].stage, Stage::Activated | Stage::Activating(_));
        match (self.nets[index].class, signal) {
            (Class::Ethernet, up) => {
                self.set_link(index, up);
                self.link_settles(index, up);
            }
            (_, false) if active => {
                self.set_link(index, false);
                self.link_settles(index, false);
            }
            (Class::Wifi | Class::Cell, true) if self.nets[index].stage == Stage::Activated => {
                self.set_link(index, true);
            }
            (Class::Wifi | Class::Cell, true) => self.link_settles(index, true),
            (Class::Wifi | Class::Cell, false) => {}
        }
    }

    fn link_settles(&mut self, index: usize, up: bool) {
        let number = self.nets[index].waits;
        if !up {
            self.after(6_000, What::Network(Change::CarrierWait(index, number)));
            return;
        }
        if matches!(self.nets[index].stage, Stage::Unavailable(_)) {
            self.set_stage(index, Stage::Disconnected { profile: true, by_user: false });
        }
        if matches!(self.nets[index].stage, Stage::Disconnected { by_user: false, .. }) {
            self.nets[index].blocked = false;
            self.autoconnect(index, 4_000);
        }
    }

    /// Our own request.
    pub fn activate(&mut self, interface: Name, attempt: Attempt) {
        let refuse = |reason| Event::ActivationRefused { interface, attempt, reason };
        let Some(index) = self.nets.iter().position(|n| n.device == interface && n.present) else {
            return self.tell(Source::NetworkManager, 1, refuse(Reason::NoLink));
        };
        if !self.manager.running {
            if self.dice.chance(800) {
                self.tell(Source::NetworkManager, 1, refuse(Reason::NoLink));
            }
            return;
        }
        match self.nets[index].stage {
            _ if self.manager.unwilling && self.dice.chance(500) => {
                let delay = self.dice.spread(1, 100_000);
                self.tell(Source::NetworkManager, delay, refuse(Reason::NoProfile));
            }
            // Lost in the mail.
            _ if !self.calm && self.dice.chance(40) => {}
            Stage::Disconnected { .. } => self.start_activation(index),
            Stage::Unmanaged | Stage::Unavailable(_) | Stage::Failed(_) => {
                self.tell(Source::NetworkManager, 1, refuse(Reason::NoLink));
            }
            Stage::Activated | Stage::Activating(_) => {}
        }
    }

    pub fn deactivate(&mut self, interface: Name) {
        if let Some(index) = self.nets.iter().position(|n| n.device == interface && n.present)
            && self.manager.running
            && matches!(self.nets[index].stage, Stage::Activated | Stage::Activating(_))
        {
            self.nets[index].blocked = true;
            self.take_down(index, Stage::Disconnected { profile: true, by_user: false });
        }
    }

    /// NetworkManager misses the access point of an active device. Most of the time it is found again at once.
    pub fn access_point_lost(&mut self, index: usize) {
        let net = &self.nets[index];
        if net.class != Class::Wifi || net.stage != Stage::Activated || !self.manager.running {
            return;
        }
        let interface = net.device;
        self.tell(Source::NetworkManager, 0, Event::AccessPointLost { interface });
        if self.dice.chance(400) {
            self.nets[index].path.mode = Mode::Silent;
            self.touch_path(index);
        }
    }

    /// `nmcli device disconnect`, or `connect`.
    pub fn nmcli(&mut self, index: usize, up: bool) {
        let by_user = matches!(self.nets[index].stage, Stage::Disconnected { by_user: true, .. });
        if !self.nets[index].present || !self.manager.running {
            return;
        }
        if up && by_user {
            self.start_activation(index);
        } else if !up && matches!(self.nets[index].stage, Stage::Activated | Stage::Activating(_)) {
            self.take_down(index, Stage::Disconnected { profile: true, by_user: true });
        }
    }

    /// A stick is pulled, or plugged in again, perhaps under another name.
    pub fn plug(&mut self, index: usize, present: bool) {
        if self.nets[index].present == present {
            return;
        }
        if !present {
            let net = &mut self.nets[index];
            net.present = false;
            net.link = false;
            net.address = false;
            net.epoch += 1;
            net.activation += 1;
            let (device, kernel) = (net.device, net.kernel);
            let delay = self.kernel_delay();
            self.tell(Source::Kernel, delay, Event::LinkGone { interface: kernel });
            if self.manager.running {
                let delay = self.dice.between(1, 500);
                self.tell(Source::NetworkManager, delay, Event::DeviceGone { interface: device });
            } else {
                self.manager.vanished.push(device);
            }
            return;
        }
        let other = self.dice.chance(300);
        let net = &mut self.nets[index];
        net.present = true;
        net.signal = true;
        net.stage = Stage::Disconnected { profile: true, by_user: false };
        if net.class == Class::Cell && other && net.device.as_str().starts_with("cdc") {
            let next = if net.device == name("cdc-wdm0") { "cdc-wdm1" } else { "cdc-wdm0" };
            net.device = name(next);
        }
        net.link = net.class == Class::Ethernet;
        let (kernel, up) = (net.kernel, net.link);
        self.tell(Source::Kernel, 1, Event::LinkChanged { interface: kernel, up });
        self.report(index);
        self.autoconnect(index, 5_000);
    }

    /// NetworkManager goes away and comes back; Ethernet survives it, a radio not always.
    pub fn manager_goes(&mut self) {
        if !self.manager.running {
            return;
        }
        self.manager.running = false;
        self.tell(Source::NetworkManager, 0, Event::NetworkManagerChanged { running: false });
    }

    pub fn manager_comes(&mut self) {
        if self.manager.running {
            return;
        }
        self.manager.running = true;
        self.tell(Source::NetworkManager, 0, Event::NetworkManagerChanged { running: true });
        for interface in std::mem::take(&mut self.manager.vanished) {
            self.tell(Source::NetworkManager, 0, Event::DeviceGone { interface });
        }
        for index in 0..self.nets.len() {
            let net = &self.nets[index];
            if !net.present {
                continue;
            }
            if !net.signal && matches!(net.stage, Stage::Activated | Stage::Activating(_)) {
                self.take_down(index, Stage::Unavailable(Reason::NoLink));
                continue;
            }
            if self.dice.chance(300) && self.nets[index].usable() {
                // It looks the devices over before it takes its old connections back.
                let device = Device { stage: Stage::Unmanaged, ..self.device(index) };
                let interface = self.nets[index].device;
                self.tell(Source::NetworkManager, 1, Event::DeviceSeen { interface, device });
            }
            let net = &self.nets[index];
            let loses = net.class == Class::Wifi && net.usable() && self.dice.chance(300);
            if loses || matches!(self.nets[index].stage, Stage::Activating(_)) {
                self.take_down(index, Stage::Disconnected { profile: true, by_user: false });
                self.autoconnect(index, 3_000);
            } else {
                self.report(index);
            }
        }
    }

    /// It says something of a device that is not so, for a while.
    pub fn manager_lies(&mut self, index: usize, length: u64) {
        if !self.nets[index].present || !self.manager.running {
            return;
        }
        let lies = [
            Stage::Failed(Reason::NoAddress),
            Stage::Activating(Step::Addressing),
            Stage::Disconnected { profile: true, by_user: false },
            Stage::Unavailable(Reason::NoLink),
            Stage::Activated,
            Stage::Unmanaged,
        ];
        let device = Device { stage: *self.dice.pick(&lies), ..self.device(index) };
        let interface = self.nets[index].device;
        self.tell(Source::NetworkManager, 0, Event::DeviceSeen { interface, device });
        self.after(length, What::Network(Change::Truth(index)));
    }

    /// The address goes and comes back (a lease that ran out).
    pub fn lease(&mut self, index: usize, there: bool) {
        if self.nets[index].present && self.nets[index].stage == Stage::Activated && self.nets[index].link {
            self.set_address(index, there);
            self.report(index);
        }
    }

    /// Everything well: what calm means here.
    pub fn calm_network(&mut self) {
        self.manager.unwilling = false;
        self.manager_comes();
        for index in 0..self.nets.len() {
            self.nets[index].dhcp_dead = false;
            self.nets[index].path.heal(self.now);
            self.plug(index, true);
            self.set_signal(index, true);
            self.nmcli(index, true);
            self.lease(index, true);
            self.report(index);
            self.nets[index].blocked = false;
            if matches!(self.nets[index].stage, Stage::Unavailable(_) | Stage::Failed(_)) {
                self.set_stage(index, Stage::Disconnected { profile: true, by_user: false });
            }
            if matches!(self.nets[index].stage, Stage::Disconnected { .. }) {
                self.autoconnect(index, 5_000);
            }
        }
    }
}
