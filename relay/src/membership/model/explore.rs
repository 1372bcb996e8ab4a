//! Every state that can be reached, breadth first, and whether rest can be reached from each.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::world::{Step, World};
use super::{Scope, Violation};

/// What was found.
pub(super) struct Explored {
    pub states: usize,
    pub transitions: usize,
    /// Kinds of moments at which a relay crashed.
    pub moments: BTreeSet<String>,
    pub at_rest: usize,
}

/// How it went wrong, with the steps that lead there.
pub(super) struct Wrong {
    pub violation: Violation,
    pub steps: Vec<Step>,
}

struct Graph {
    known: HashMap<u128, u32, BuildHasherDefault<Plain>>,
    /// How each state was reached first.
    parents: Vec<(u32, Step)>,
    edges: Vec<(u32, u32)>,
    goals: Vec<u32>,
    /// States in which nobody is left and nobody can come.
    hopeless: Vec<u32>,
}

pub(super) fn explore(scope: &Scope) -> Result<Explored, Wrong> {
    let mut world = World::new(scope);
    world.make_canonical();
    let mut graph = Graph {
        known: HashMap::default(),
        parents: vec![(0, Step::Tick)],
        edges: Vec::new(),
        goals: Vec::new(),
        hopeless: Vec::new(),
    };
    graph.known.insert(fingerprint(&world), 0);
    let mut open = VecDeque::from([world]);
    let (mut transitions, mut moments) = (0, BTreeSet::new());
    let mut at = 0_u32;
    while let Some(world) = open.pop_front() {
        if world.is_at_rest(scope) {
            graph.goals.push(at);
        }
        if !world.has_hope(scope) {
            graph.hopeless.push(at);
            at += 1;
            continue;
        }
        for step in world.steps(scope) {
            let mut next = world.clone();
            if let Err(violation) = next.take(step, scope) {
                let mut steps = graph.path(at);
                steps.push(step);
                return Err(Wrong { violation, steps });
            }
            next.make_canonical();
            let count = u32::try_from(graph.parents.len()).expect("the scope is small");
            let reached = *graph.known.entry(fingerprint(&next)).or_insert(count);
            if reached == at {
                continue;
            }
            transitions += 1;
            if let Step::Crash(place) = step {
                moments.insert(world.moment(place));
            }
            if !step.is_fault() {
                graph.edges.push((at, reached));
            }
            if reached == count {
                graph.parents.push((at, step));
                open.push_back(next);
            }
        }
        at += 1;
    }
    if let Some(stuck) = graph.stuck() {
        return Err(Wrong { violation: Violation::Stuck, steps: graph.path(stuck) });
    }
    Ok(Explored { states: graph.parents.len(), transitions, moments, at_rest: graph.goals.len() })
}

impl Graph {
    /// The steps that led to a state first.
    fn path(&self, mut state: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        while state != 0 {
            let (parent, step) = self.parents[state as usize];
            steps.push(step);
            state = parent;
        }
        steps.reverse();
        steps
    }

    /// The first state from which rest cannot be reached.
    fn stuck(&self) -> Option<u32> {
        let count = self.parents.len();
        // The edges sorted by where they lead.
        let mut first = vec![0_u32; count + 1];
        self.edges.iter().for_each(|(_, to)| first[*to as usize + 1] += 1);
        (0..count).for_each(|n| first[n + 1] += first[n]);
        let mut fill = first.clone();
        let mut from = vec![0_u32; self.edges.len()];
        for (start, to) in &self.edges {
            from[fill[*to as usize] as usize] = *start;
            fill[*to as usize] += 1;
        }
        let mut reaches = vec![false; count];
        let mut open = self.goals.clone();
        open.iter().for_each(|goal| reaches[*goal as usize] = true);
        self.hopeless.iter().for_each(|state| reaches[*state as usize] = true);
        while let Some(state) = open.pop() {
            for &before in &from[first[state as usize] as usize..first[state as usize + 1] as usize] {
                if !std::mem::replace(&mut reaches[before as usize], true) {
                    open.push(before);
                }
            }
        }
        reaches.iter().position(|reaches| !reaches).map(|state| u32::try_from(state).unwrap())
    }
}

/// The numbers are hashes already.
#[derive(Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

/// 128 bits of a state: two states are taken for one by accident less often than a machine errs.
fn fingerprint(world: &World) -> u128 {
    let mut hasher = Mixer { a: 0x9e37_79b9_7f4a_7c15, b: 0xc2b2_ae3d_27d4_eb4f };
    world.hash(&mut hasher);
    u128::from(hasher.finish()) << 64 | u128::from(hasher.b)
}

struct Mixer {
    a: u64,
    b: u64,
}

impl Mixer {
    fn mix(&mut self, value: u64) {
        self.a = (self.a ^ value).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
        self.b = (self.b.rotate_left(23) ^ value).wrapping_mul(0xc4ce_b9fe_1a85_ec53).wrapping_add(self.a >> 32);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.a
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0_u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }
}
