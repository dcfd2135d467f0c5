//! What breaks, and when. A run stays within what the design survives: only one machine of a run may lose what it had
//! synced (bit rot, a lost disk); everything else strikes all of them.

use crate::sim::wire::Caller;
use crate::sim::world::{CALM, GATEWAYS, MACHINES, ROUGH, What, World};
use longshore_io::sim::{Effect, Fault, Operation};
use longshore_io::{Disk, sim::SimDisk};
use longshore_mutations::{self as mutations, Mutation};
use longshore_node::{Input, Ticket};
use longshore_proto::v1;
use longshore_wire::{NodeId, ShardId};
use std::collections::BTreeSet;

const MACHINE_TICK_US: u64 = 250_000;
/// Where bits of a segment may flip: behind its header, and a batch before its end.
const ROT_FROM: u64 = 4_096;
const LAST_BATCH_BYTES: u64 = 40 << 10;

/// Nothing goes between two endpoints any more.
pub fn both_ways(cut: &mut BTreeSet<(usize, usize)>, one: usize, other: usize) {
    cut.insert((one, other));
    cut.insert((other, one));
}

impl World {
    /// What a machine's surroundings do four times a second.
    pub fn machine_tick(&mut self, slot: usize) {
        self.post(MACHINE_TICK_US, What::MachineTick { slot });
        if self.machines[slot].joining && !self.machines[slot].registering {
            self.register(slot);
        }
        let Some(process) = &self.machines[slot].process else { return };
        let has_meta = process.node.has_meta();
        if let Ok(free) = self.machines[slot].disk.free_bytes() {
            self.input(slot, Input::FreeBytes(free));
        }
        if !has_meta {
            self.look_at_meta(slot);
        }
        if self.rng.one_in(8) {
            self.compare_replicas(slot);
        }
    }

    /// Asks a node for its replicas' state hashes.
    pub fn compare_replicas(&mut self, slot: usize) {
        self.inspect(slot, Caller::Compare, "shards", 0);
    }

    /// Asks a node about itself.
    pub fn inspect(&mut self, slot: usize, caller: Caller, what: &str, shard: u32) {
        let call = self.id();
        self.calls.insert(call, caller);
        let request = v1::InspectRequest { what: what.to_owned(), shard, ..v1::InspectRequest::default() };
        self.input(slot, Input::Inspect { ticket: Ticket(call), request });
    }

    /// One thing breaks or heals; the next follows.
    pub fn fault(&mut self) {
        if !self.stormy {
            return;
        }
        let next = 200_000 + self.rng.below(1_300_000);
        self.post(next, What::Fault);
        self.reached.faults += 1;
        let slot = self.rng.below(MACHINES as u64) as usize;
        let gateway = self.rng.below(GATEWAYS as u64) as usize;
        match self.rng.below(24) {
            0..=2 => self.crash(slot),
            3 => self.crash_all(),
            4 | 5 => self.crash_inside(slot),
            6 | 7 => self.cut_off(slot, gateway),
            8 | 9 => self.cut.clear(),
            10 => self.pause(slot),
            11 => {
                self.weather = ROUGH;
                self.note("rough weather".to_owned());
            }
            12 => self.weather = CALM,
            13 => self.refuse(slot),
            14 => self.fill(slot),
            15 => (0..MACHINES).for_each(|slot| self.machines[slot].disk.set_capacity(None)),
            16 => self.slow(slot),
            17 => self.step_clock(slot),
            18 => self.hand_over(slot),
            19 => self.stop_gateway(gateway),
            20 => self.rot(),
            21 => self.wipe(),
            22 => self.pause_leader(),
            _ => self.crash_leader(),
        }
    }

    pub fn note(&mut self, text: String) {
        self.history.note(self.now, text);
    }

    fn crash(&mut self, slot: usize) {
        let power = self.rng.one_in(2);
        let again_ms = 100 + self.rng.below(4_000);
        self.kill(slot, power, again_ms);
    }

    fn crash_leader(&mut self) {
        let leads = |slot: &usize| {
            self.machines[*slot].process.as_ref().is_some_and(|process| process.node.leads() > 0)
        };
        let busy = |slot: &usize| {
            self.machines[*slot].process.as_ref().is_some_and(|process| process.has_unsynced())
        };
        let leaders: Vec<usize> = (0..MACHINES).filter(leads).collect();
        let chosen = leaders.iter().copied().find(busy).or(leaders.first().copied());
        if let Some(slot) = chosen {
            let again_ms = 100 + self.rng.below(2_000);
            self.kill(slot, true, again_ms);
        }
    }

    fn crash_all(&mut self) {
        self.reached.all_died += 1;
        for slot in 0..MACHINES {
            let again_ms = 100 + self.rng.below(1_500);
            self.kill(slot, true, again_ms);
        }
    }

    /// The disk dies at one of its next changes, perhaps inside it.
    fn crash_inside(&mut self, slot: usize) {
        let (nth, inside) = (self.rng.below(12), !self.rng.one_in(4));
        if self.machines[slot].process.is_some() {
            self.reached.torn_write += u64::from(inside);
            self.note(format!("disk {slot} dies at change {nth}, inside {inside}"));
            self.machines[slot].disk.crash_at_change(nth, inside);
        }
    }

    fn cut_off(&mut self, slot: usize, gateway: usize) {
        let end = if self.rng.one_in(3) { MACHINES + gateway } else { slot };
        let one_way = self.rng.one_in(2);
        for other in (0..MACHINES + GATEWAYS).filter(|other| *other != end) {
            if self.rng.below(4) > 0 {
                self.cut.insert((end, other));
                if !one_way {
                    self.cut.insert((other, end));
                }
            }
        }
        self.reached.cut += 1;
        self.reached.cut_one_way += u64::from(one_way);
        self.note(format!("cut {:?}", self.cut));
    }

    fn pause(&mut self, slot: usize) {
        let until = self.now + 100_000 + self.rng.below(5_000_000);
        let Some(process) = &self.machines[slot].process else { return };
        self.reached.paused += 1;
        self.reached.leader_paused += u64::from(process.node.leads() > 0);
        self.machines[slot].paused_until = until;
        self.note(format!("node {slot} stands still until {:.3}", until as f64 / 1e6));
    }

    fn pause_leader(&mut self) {
        let leads = |slot: &usize| {
            self.machines[*slot].process.as_ref().is_some_and(|process| process.node.leads() > 0)
        };
        if let Some(slot) = (0..MACHINES).find(leads) {
            self.pause(slot);
        }
    }

    /// One of the next operations fails.
    fn refuse(&mut self, slot: usize) {
        let (operation, effect) = match self.rng.below(6) {
            0 => (Operation::Sync, Effect::LostSync),
            1 => (Operation::Write, Effect::Eio),
            2 => (Operation::Write, Effect::Short(self.rng.below(600) as usize)),
            3 => (Operation::Create, Effect::NoSpace),
            // A flipped read counts as damage, which only one machine may have.
            4 if slot == self.victim => (Operation::Read, Effect::FlipRead),
            _ => (Operation::Read, Effect::Eio),
        };
        let after = self.rng.below(20);
        self.note(format!("disk {slot}: {operation:?} {effect:?} after {after}"));
        self.machines[slot].disk.inject(Fault { operation, path_prefix: String::new(), after, effect });
    }

    fn fill(&mut self, slot: usize) {
        let disk = &self.machines[slot].disk;
        let capacity = disk.used_bytes() + 300 * 1024;
        disk.set_capacity(Some(capacity));
        self.note(format!("disk {slot} has room for {capacity} bytes"));
    }

    fn slow(&mut self, slot: usize) {
        let sync_us = [300, 1_000, 20_000, 150_000, 400_000][self.rng.below(5) as usize];
        self.reached.slow_disk += u64::from(sync_us > 10_000);
        self.machines[slot].sync_us = sync_us;
    }

    fn step_clock(&mut self, slot: usize) {
        self.reached.clock_stepped += 1;
        let wall = &mut self.machines[slot].wall_ms;
        *wall = if self.rng.one_in(2) { *wall + 3_600_000 } else { wall.saturating_sub(600_000) };
    }

    fn hand_over(&mut self, slot: usize) {
        let call = self.id();
        self.calls.insert(call, Caller::Nobody);
        let to = NodeId(self.machines[self.rng.below(MACHINES as u64) as usize].node.0);
        let shard = ShardId(self.rng.below(4) as u32);
        self.reached.transfers += 1;
        self.input(slot, Input::TransferLeader { ticket: Ticket(call), shard, to });
    }

    /// Whoever leads a shard hands it over to a machine.
    pub fn hand_over_to(&mut self, shard: u32, to: usize) {
        let to = self.machines[to].node;
        self.reached.transfers += 1;
        for slot in 0..MACHINES {
            let call = self.id();
            self.calls.insert(call, Caller::Nobody);
            self.input(slot, Input::TransferLeader { ticket: Ticket(call), shard: ShardId(shard), to });
        }
    }

    fn stop_gateway(&mut self, gateway: usize) {
        if self.rng.one_in(2) {
            self.reached.gateway_died += 1;
            self.note(format!("gateway {gateway} dies"));
            self.session_over(gateway);
        } else {
            self.reached.gateway_paused += 1;
            self.gateways[gateway].paused_until = self.now + self.rng.below(6_000_000);
        }
    }

    /// Bits of the victim's log flip, anywhere but within the last batch of a segment: a flip there cannot be told from a torn
    /// write, as the design says.
    fn rot(&mut self) {
        let slot = self.victim;
        let files: Vec<String> = self.machines[slot].disk.list("log").unwrap_or_default();
        let segments: Vec<&String> = files.iter().filter(|name| name.as_str() != "manifest").collect();
        if segments.is_empty() || self.machines[slot].joining {
            return;
        }
        let name = format!("log/{}", segments[self.rng.below(segments.len() as u64) as usize]);
        let content = self.machines[slot].disk.content(&name).unwrap_or_default();
        let end = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        let room = end.saturating_sub(LAST_BATCH_BYTES + ROT_FROM);
        if room == 0 {
            return;
        }
        let at = ROT_FROM + self.rng.below(room);
        if self.machines[slot].disk.flip(&name, at, self.rng.below(8) as u8) {
            self.reached.bit_rot += 1;
            self.note(format!("bit rot on {slot} in {name} at {at}"));
        }
    }

    /// The victim loses its disk and comes back as a new node, once in a run.
    fn wipe(&mut self) {
        if self.wiped {
            return;
        }
        self.wiped = true;
        self.wipe_machine(self.victim);
    }

    /// A machine loses its disk and comes back as a new node.
    pub fn wipe_machine(&mut self, slot: usize) {
        self.reached.wiped += 1;
        let seed = self.rng.next_u64();
        self.note(format!("node {slot} is wiped"));
        self.kill(slot, true, 300);
        let machine = &mut self.machines[slot];
        machine.disk = SimDisk::new(seed);
        machine.joining = !mutations::on(Mutation::WipedNodeKeepsId);
        machine.registering = false;
    }

    /// Everything heals.
    pub fn heal(&mut self) {
        self.stormy = false;
        self.cut.clear();
        self.weather = CALM;
        self.note("everything heals".to_owned());
        for slot in 0..MACHINES {
            let machine = &mut self.machines[slot];
            machine.disk.clear_faults();
            machine.disk.set_capacity(None);
            machine.paused_until = 0;
            machine.sync_us = 1_000;
            self.wake(slot, 0);
        }
        for gateway in &mut self.gateways {
            gateway.paused_until = 0;
        }
    }
}
