//! Who should own how many partitions.
//!
//! Pure: from the relays, and from who owns what, to what this relay gives up and what it takes. Every relay reckons
//! for itself from the table it has just read; there is no leader and nothing is agreed upon beforehand. Two relays may
//! look at the table at different moments and therefore differ for a while: the table itself decides who gets a partition,
//! and the next look corrects the rest.
//!
//! Invariants
//! - Nothing is given up for the sake of a relay that is not known to live: it might never take it.
//! - Nothing is taken beyond a fair share among all relays that may be alive: what is taken too much has to move again.
//! - From any state, when no relay comes or goes, every partition is owned in the end, shares differ by one at most, and
//!   then nothing moves any more.
//! - A relay that stops, or that does not serve a destination which another serves, owns nothing.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};

use crate::message::{PartitionSet, RelayId};

/// A relay as the one who reckons sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seat<'a> {
    /// Its identity.
    pub id: RelayId,
    /// When it registered.
    pub started_at: DateTime<Utc>,
    /// True when it is stopping.
    pub draining: bool,
    /// The destinations it serves.
    pub serves: &'a [String],
    /// True when its beat was seen to move, and for the one who reckons.
    pub lives: bool,
}

/// What to do about the partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Free partitions to take.
    pub take: PartitionSet,
    /// Own partitions to give up.
    pub give_up: PartitionSet,
    /// True when shares are not even yet: worth another look soon.
    pub uneven: bool,
    /// Destinations that others serve and this relay does not, which is why it owns nothing.
    pub not_serving: Vec<String>,
}

/// What `me` should take and give up. `owners` lists every partition; an owner that is not among the relays is none.
pub(crate) fn plan(me: RelayId, relays: &[Seat<'_>], owners: &[(u8, Option<RelayId>)]) -> Plan {
    let counted = candidates(relays);
    let mut owned: HashMap<RelayId, PartitionSet> = HashMap::new();
    let mut free = PartitionSet::EMPTY;
    for &(partition_no, owner) in owners {
        match owner.filter(|owner| relays.iter().any(|relay| relay.id == *owner)) {
            Some(owner) => {
                let set = owned.entry(owner).or_default();
                *set = set.with(partition_no);
            }
            None => free = free.with(partition_no),
        }
    }
    let of = |id: RelayId| owned.get(&id).copied().unwrap_or_default();
    let mine = of(me);
    let Some(rank) = counted.iter().position(|seat| seat.id == me) else {
        // Given up only to somebody: better served here, and what others alone serve kept waiting, than not at all.
        let heirs = counted.iter().any(|seat| seat.lives) || is_draining(me, relays);
        return Plan {
            give_up: if heirs { mine } else { PartitionSet::EMPTY },
            uneven: !mine.is_empty(),
            not_serving: not_serving(me, relays),
            ..Plan::default()
        };
    };
    let possible: Vec<RelayId> = counted.iter().map(|seat| seat.id).collect();
    let living: Vec<RelayId> = counted.iter().filter(|seat| seat.lives).map(|seat| seat.id).collect();
    let all = owners.len();
    let surplus = mine.len().saturating_sub(share(me, &living, all, |id| of(id).len()));
    let missing = share(me, &possible, all, |id| of(id).len()).saturating_sub(mine.len());
    // Relays that take at the same moment begin at different places.
    let mut offered: Vec<u8> = free.iter().collect();
    let turn = (rank * offered.len()).checked_div(possible.len()).unwrap_or(0);
    offered.rotate_left(turn);
    let even = all.div_ceil(possible.len());
    Plan {
        take: offered.into_iter().take(missing).collect(),
        give_up: mine.iter().collect::<Vec<_>>().into_iter().rev().take(surplus).collect(),
        uneven: !free.is_empty() || relays.iter().any(|relay| of(relay.id).len() > even),
        not_serving: Vec::new(),
    }
}

/// How many of `all` partitions `me` should own among these relays: the remainder goes to those who own most already, so that as
/// little as possible moves.
fn share(me: RelayId, relays: &[RelayId], all: usize, owned: impl Fn(RelayId) -> usize) -> usize {
    let mut order = relays.to_vec();
    order.sort_unstable_by_key(|id| (std::cmp::Reverse(owned(*id)), *id));
    let Some(rank) = order.iter().position(|id| *id == me) else { return 0 };
    let (each, over) = (all / order.len(), all % order.len());
    each + usize::from(rank < over)
}

/// The relays that may own partitions, by identity: those that go on and serve everything that any of them serves. When
/// none does, those that serve at least what the one started last does.
fn candidates<'r, 's>(relays: &'r [Seat<'s>]) -> Vec<&'r Seat<'s>> {
    let staying: Vec<&Seat<'_>> = relays.iter().filter(|relay| !relay.draining).collect();
    let wanted = required(&staying);
    let mut candidates: Vec<&Seat<'_>> = staying.into_iter().filter(|seat| serves_all(seat, &wanted)).collect();
    candidates.sort_unstable_by_key(|seat| seat.id);
    candidates
}

/// What a relay has to serve to own partitions.
fn required<'s>(staying: &[&Seat<'s>]) -> BTreeSet<&'s str> {
    let everything: BTreeSet<&str> = staying.iter().flat_map(|seat| seat.serves).map(String::as_str).collect();
    if staying.iter().any(|seat| serves_all(seat, &everything)) {
        return everything;
    }
    let newest = staying.iter().max_by_key(|seat| (seat.started_at, seat.id));
    newest.map(|seat| seat.serves.iter().map(String::as_str).collect()).unwrap_or_default()
}

fn serves_all(seat: &Seat<'_>, wanted: &BTreeSet<&str>) -> bool {
    wanted.iter().all(|name| seat.serves.iter().any(|served| served == name))
}

fn is_draining(me: RelayId, relays: &[Seat<'_>]) -> bool {
    relays.iter().any(|relay| relay.id == me && relay.draining)
}

fn not_serving(me: RelayId, relays: &[Seat<'_>]) -> Vec<String> {
    let staying: Vec<&Seat<'_>> = relays.iter().filter(|relay| !relay.draining).collect();
    let Some(my) = staying.iter().find(|seat| seat.id == me) else { return Vec::new() };
    required(&staying)
        .into_iter()
        .filter(|name| !my.serves.iter().any(|served| served == name))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::PARTITIONS;

    fn id(n: u128) -> RelayId {
        RelayId::from_u128(n)
    }

    struct Somebody {
        id: RelayId,
        draining: bool,
        lives: bool,
        serves: Vec<String>,
        started: i64,
    }

    fn somebody(n: u128) -> Somebody {
        Somebody { id: id(n), draining: false, lives: true, serves: vec!["mail".into()], started: 0 }
    }

    fn seats(relays: &[Somebody]) -> Vec<Seat<'_>> {
        let seat = |relay: &Somebody| Seat {
            id: relay.id,
            started_at: DateTime::from_timestamp(relay.started, 0).unwrap(),
            draining: relay.draining,
            serves: Box::leak(relay.serves.clone().into_boxed_slice()),
            lives: relay.lives,
        };
        relays.iter().map(seat).collect()
    }

    /// Partition n belongs to `owners[n]`; what is left out is free.
    fn table(owners: impl Fn(u8) -> Option<u128>) -> Vec<(u8, Option<RelayId>)> {
        (0..PARTITIONS).map(|n| (n, owners(n).map(id))).collect()
    }

    #[test]
    fn a_relay_alone_takes_everything() {
        let plan = plan(id(1), &seats(&[somebody(1)]), &table(|_| None));
        assert_eq!(plan.take, PartitionSet::ALL);
        assert!(plan.give_up.is_empty());
    }

    #[test]
    fn a_newcomer_gets_its_share_once_it_is_known_to_live() {
        let mut relays = [somebody(1), somebody(2)];
        relays[1].lives = false;
        let all_mine = table(|_| Some(1));
        assert!(plan(id(1), &seats(&relays), &all_mine).give_up.is_empty(), "it might be dead");
        relays[1].lives = true;
        assert_eq!(plan(id(1), &seats(&relays), &all_mine).give_up.len(), 16);
        assert_eq!(plan(id(2), &seats(&relays), &all_mine).take.len(), 0, "nothing is free yet");
    }

    #[test]
    fn two_that_start_together_do_not_take_more_than_half() {
        let mut relays = [somebody(1), somebody(2)];
        relays[0].lives = false;
        relays[1].lives = false;
        let nobodys = table(|_| None);
        relays[0].lives = true;
        let first = plan(id(1), &seats(&relays), &nobodys).take;
        relays[0].lives = false;
        relays[1].lives = true;
        let second = plan(id(2), &seats(&relays), &nobodys).take;
        assert_eq!((first.len(), second.len()), (16, 16));
        assert_eq!(first.or(second), PartitionSet::ALL, "they begin at different places");
    }

    #[test]
    fn whoever_stops_gives_up_everything_and_takes_nothing() {
        let mut relays = [somebody(1), somebody(2)];
        relays[0].draining = true;
        let owners = table(|n| (n < 16).then_some(1));
        let stopping = plan(id(1), &seats(&relays), &owners);
        assert_eq!((stopping.give_up.len(), stopping.take.len()), (16, 0));
        assert_eq!(plan(id(2), &seats(&relays), &owners).take.len(), 16, "the other half is not free yet");
        assert!(stopping.not_serving.is_empty(), "it stops; what it serves does not matter");
    }

    #[test]
    fn what_others_serve_has_to_be_served() {
        let mut relays = [somebody(1), somebody(2)];
        relays[1].serves.push("billing".into());
        let old = plan(id(1), &seats(&relays), &table(|_| Some(1)));
        assert_eq!((old.give_up, old.not_serving), (PartitionSet::ALL, vec!["billing".to_owned()]));
        assert_eq!(plan(id(2), &seats(&relays), &table(|_| None)).take, PartitionSet::ALL);
    }

    #[test]
    fn when_nobody_serves_everything_the_newest_rules() {
        let mut relays = [somebody(1), somebody(2), somebody(3)];
        relays[0].serves = vec!["mail".into(), "stock".into()];
        relays[1].serves = vec!["mail".into(), "billing".into()];
        relays[2].serves = vec!["mail".into(), "billing".into(), "audit".into()];
        relays[1].started = 9;
        let nobodys = table(|_| None);
        assert_eq!(plan(id(1), &seats(&relays), &nobodys).take.len(), 0);
        assert_eq!(plan(id(2), &seats(&relays), &nobodys).take.len(), 16);
        assert_eq!(plan(id(3), &seats(&relays), &nobodys).take.len(), 16, "it serves what the newest does, and more");
        assert_eq!(plan(id(1), &seats(&relays), &nobodys).not_serving, ["billing"]);
    }

    #[test]
    fn nothing_is_given_up_for_one_that_may_be_dead() {
        let mut relays = [somebody(1), somebody(2)];
        relays[1].serves.push("billing".into());
        relays[1].lives = false;
        assert!(plan(id(1), &seats(&relays), &table(|_| Some(1))).give_up.is_empty());
    }

    /// A database and relays that look and act at different moments: what was seen may be old when it is acted upon.
    struct World {
        owners: Vec<Option<RelayId>>,
        relays: Vec<Somebody>,
        views: Vec<Vec<Option<RelayId>>>,
        moves: usize,
    }

    impl World {
        fn look(&mut self, relay: usize) {
            self.views[relay] = self.owners.clone();
        }

        fn act(&mut self, relay: usize) {
            let me = self.relays[relay].id;
            let seen: Vec<(u8, Option<RelayId>)> = (0..PARTITIONS).zip(self.views[relay].iter().copied()).collect();
            let plan = plan(me, &seats(&self.relays), &seen);
            for n in plan.give_up.iter().map(usize::from) {
                if self.owners[n] == Some(me) {
                    self.owners[n] = None;
                    self.moves += 1;
                }
            }
            for n in plan.take.iter().map(usize::from) {
                let taken = self.owners[n].is_some_and(|owner| self.relays.iter().any(|relay| relay.id == owner));
                if !taken {
                    self.owners[n] = Some(me);
                    self.moves += 1;
                }
            }
        }

        fn count(&self, relay: &Somebody) -> usize {
            self.owners.iter().filter(|owner| **owner == Some(relay.id)).count()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn from_any_state_every_partition_is_owned_and_shares_are_even(
            kinds in prop::collection::vec((prop::bool::weighted(0.2), prop::bool::weighted(0.2)), 1..7),
            owners in prop::collection::vec(0_usize..9, usize::from(PARTITIONS)),
            steps in prop::collection::vec((0_usize..7, prop::bool::ANY), 0..60),
        ) {
            let mut relays: Vec<Somebody> = Vec::new();
            for (n, (draining, poorer)) in kinds.iter().enumerate() {
                let mut relay = somebody(n as u128 + 1);
                relay.draining = *draining;
                if !poorer {
                    relay.serves.push("billing".into());
                }
                relays.push(relay);
            }
            let count = relays.len();
            // 8 is somebody whose row is gone, 0 nobody.
            let owners = owners.iter().map(|n| (*n > 0).then(|| id(*n as u128))).map(|owner| {
                owner.filter(|owner| *owner == id(8) || relays.iter().any(|relay| relay.id == *owner))
            }).collect::<Vec<_>>();
            let mut world = World { views: vec![owners.clone(); count], owners, relays, moves: 0 };
            // At first they look and act in any order.
            for (relay, looks) in steps {
                let relay = relay % count;
                if looks { world.look(relay) } else { world.act(relay) }
            }
            // Then everybody looks and acts, again and again.
            let mut rounds = 0;
            loop {
                let before = world.moves;
                for relay in 0..count {
                    world.look(relay);
                    world.act(relay);
                }
                if world.moves == before {
                    break;
                }
                rounds += 1;
                prop_assert!(rounds <= 6, "it does not come to rest: {:?}", world.owners);
            }
            let seats = seats(&world.relays);
            let may: Vec<RelayId> = candidates(&seats).iter().map(|seat| seat.id).collect();
            let counts: Vec<usize> =
                world.relays.iter().filter(|relay| may.contains(&relay.id)).map(|relay| world.count(relay)).collect();
            if may.is_empty() {
                prop_assert!(world.relays.iter().all(|relay| relay.draining));
                prop_assert!(world.owners.iter().all(|owner| owner.is_none_or(|owner| owner == id(8))));
            } else {
                prop_assert_eq!(counts.iter().sum::<usize>(), usize::from(PARTITIONS));
                prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
            }
        }
    }
}
