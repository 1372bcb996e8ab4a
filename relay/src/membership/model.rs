//! Two relays over one set of tables, in every order in which their steps can fall.
//!
//! The relays run the code of production, [`Member`](super::member::Member) and `lease::plan`, over tables whose calls
//! do in one piece what the statements of the stores do in one transaction. Between any two steps a relay may crash, stand
//! still for as long as it pleases, be asked to stop, or get an error for a call that had its effect or had none.
//! Every state that can be reached so is visited; nothing is drawn at random.
//!
//! What must hold in every state is a [`Violation`] by name. Besides, from every state a state must be reachable without
//! another fault in which everything is delivered, shares are even, and nothing moves any more.
//!
//! Planted bugs, one at a time, must each be caught under their own name: a model that cannot fail proves nothing.
//!
//! The scope is small: two partitions with one key each, few messages, a lease of two ticks, or of three for one of them. Not modelled: failed attempts
//! and waiting rows, transactions of producers (`frontier::model` has those), a statement that reaches the database after
//! its sender has crashed, and clocks that run at different speeds.

mod canonical;
mod engine;
mod explore;
mod process;
mod tables;
mod world;

use std::time::Duration;

use crate::message::RelayId;
use crate::moment::Moment;
use explore::{Explored, explore};

/// Partitions in the model.
const PARTS: usize = 2;
/// The lease, in ticks; a renewal is due in each.
const LEASE: u8 = 2;
/// The lease of a relay that has another than the rest.
const LEASE_LONG: u8 = 3;
/// Relays that may ever be started; each start is a new identity.
const IDENTITIES: u8 = 3;

/// The number of the relay that comes first; others come above or below it.
const FIRST: u8 = 1;

fn identity(n: u8) -> RelayId {
    RelayId::from_u128(u128::from(n) + 1)
}

/// So many ticks from now. The present of the model is always the same moment.
fn at(ticks: i64) -> Moment {
    Moment::at(Duration::from_secs(u64::try_from(1_000 + ticks).expect("not that far in the past")))
}

/// What may happen.
#[derive(Clone, Copy, Debug)]
struct Scope {
    /// Messages of each partition.
    messages: [u8; PARTS],
    /// Nobody ever misses a renewal, so nobody may be buried and nothing repeated.
    calm: bool,
    /// How many relays may stand still at a time.
    late: usize,
    /// How many relays are started, one after another; two at a time.
    boots: usize,
    crashes: bool,
    errors: bool,
    stops: bool,
    /// An engine may stand still for good while its membership goes on.
    wedges: bool,
    /// The first relay has a longer lease than the others.
    uneven: bool,
    /// Ownership may change while a poll is under way.
    slow_polls: bool,
    /// Answers to the membership may be on their way for any time, and so may its looks.
    slow_answers: bool,
    bug: Option<Bug>,
}

/// Relays come, stop and come again, and hand over to each other; nothing goes wrong.
const CALM: Scope = Scope {
    messages: [0, 1],
    calm: true,
    late: 0,
    boots: 2,
    crashes: false,
    errors: false,
    stops: true,
    wedges: false,
    uneven: false,
    slow_polls: false,
    slow_answers: false,
    bug: None,
};

/// Relays crash.
const ROUGH: Scope = Scope { calm: false, crashes: true, stops: false, ..CALM };

impl Scope {
    /// The lease with which relay number `n` registers, in ticks.
    fn lease_of(&self, n: u8) -> u8 {
        if self.uneven && n == FIRST { LEASE_LONG } else { LEASE }
    }
}

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Violation {
    /// A message was ended that nobody had received.
    Lost,
    /// A message was received before an earlier one of its key.
    Overtaken,
    /// A message was received twice although nothing had gone wrong.
    Repeated,
    /// A settle under the lock changed something although its epoch was not that of the partition.
    WrittenByAStranger,
    /// An attempt began at a relay whose lease was over.
    StartedWithoutLease,
    /// An attempt began at a relay that did not own the partition.
    StartedByAStranger,
    /// Two relays believe in one epoch of a partition.
    OneEpochTwoOwners,
    /// A relay was declared dead whose beat had not stood still for its lease.
    BuriedAlive,
    /// Everybody renewed in time, and somebody was declared dead.
    BuriedInCalm,
    /// Everybody renewed in time, and somebody's row was gone.
    ExpelledInCalm,
    /// A partition belongs to a relay that has left.
    OwnedByNobody,
    /// A lease was renewed for an engine that had not turned for longer than it.
    RenewedForTheWedged,
    /// There is no way to rest from here.
    Stuck,
}

/// Bugs to be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    SettleWithoutEpoch,
    ReleaseBeforeQuiet,
    BuryWhateverTheBeat,
    AcquireWithoutEpoch,
    RenewForTheWedged,
    LeaseUnchecked,
    GainWithoutHole,
    LeaveAsOwner,
    PlanOscillates,
    PollOutlivesOwnership,
    CountFromTheQuestion,
    JudgeByOwnLease,
}

/// Visits everything within this scope; nothing may go wrong. `states` are at least to be found: an explorer that stops early
/// proves nothing.
fn nothing_goes_wrong(scope: Scope, states: usize) {
    match explore(&scope) {
        Ok(explored) => tell(&scope, &explored, states),
        Err(wrong) => panic!("{:?} after {:?} in {scope:?}", wrong.violation, wrong.steps),
    }
}

fn tell(scope: &Scope, explored: &Explored, states: usize) {
    println!(
        "{scope:?}\n  states {}, transitions {}, crashes at {} kinds of points, at rest {}, violations 0",
        explored.states,
        explored.transitions,
        explored.moments.len(),
        explored.at_rest
    );
    assert!(explored.states >= states && explored.at_rest > 0, "only {} states", explored.states);
    assert!(!scope.crashes || explored.moments.len() >= 5, "{:?}", explored.moments);
}

#[test]
fn partitions_are_handed_over_and_back_and_nothing_is_repeated() {
    nothing_goes_wrong(CALM, 100_000);
}

#[test]
fn a_relay_that_crashes_or_stands_still_anywhere_loses_nothing() {
    nothing_goes_wrong(Scope { late: 1, messages: [0, 1], ..ROUGH }, 100_000);
}

#[test]
fn a_crash_between_any_two_steps_keeps_both_partitions_and_their_order() {
    nothing_goes_wrong(Scope { messages: [1, 1], ..ROUGH }, 30_000);
    nothing_goes_wrong(Scope { messages: [2, 0], ..ROUGH }, 20_000);
}

#[test]
fn a_third_relay_takes_over_after_any_two() {
    nothing_goes_wrong(Scope { boots: 3, messages: [0, 0], ..ROUGH }, 60_000);
}

#[test]
fn a_relay_with_a_longer_lease_is_not_declared_dead_by_one_with_a_shorter() {
    nothing_goes_wrong(Scope { uneven: true, late: 1, messages: [0, 1], ..ROUGH }, 100_000);
}

#[test]
fn an_error_for_any_call_with_or_without_its_effect_loses_nothing() {
    nothing_goes_wrong(Scope { crashes: false, errors: true, messages: [0, 1], ..ROUGH }, 40_000);
}

#[test]
fn an_engine_that_does_not_turn_any_more_loses_its_partitions_to_another() {
    nothing_goes_wrong(Scope { crashes: false, wedges: true, messages: [0, 0], ..ROUGH }, 10_000);
}

/// Wider scopes: minutes in a debug build, so only when `OUTBOX_TEST_EFFORT` asks for it.
#[test]
fn nothing_goes_wrong_in_wider_scopes() {
    if std::env::var_os("OUTBOX_TEST_EFFORT").is_none() {
        return;
    }
    nothing_goes_wrong(Scope { slow_polls: true, ..CALM }, 200_000);
    nothing_goes_wrong(Scope { uneven: true, ..CALM }, 100_000);
    nothing_goes_wrong(Scope { messages: [2, 0], ..CALM }, 200_000);
    nothing_goes_wrong(Scope { late: 1, messages: [1, 0], ..ROUGH }, 100_000);
    nothing_goes_wrong(Scope { late: 1, crashes: false, messages: [2, 0], ..ROUGH }, 200_000);
    nothing_goes_wrong(Scope { late: 2, messages: [0, 0], ..ROUGH }, 100_000);
    nothing_goes_wrong(Scope { late: 2, messages: [0, 1], ..ROUGH }, 100_000);
    nothing_goes_wrong(Scope { late: 1, boots: 3, messages: [0, 0], ..ROUGH }, 500_000);
    nothing_goes_wrong(Scope { stops: true, messages: [0, 1], ..ROUGH }, 100_000);
    nothing_goes_wrong(Scope { errors: true, stops: true, messages: [0, 1], ..ROUGH }, 100_000);
    nothing_goes_wrong(Scope { late: 1, slow_answers: true, messages: [0, 0], ..ROUGH }, 300_000);
    nothing_goes_wrong(Scope { late: 1, wedges: true, crashes: false, messages: [0, 0], ..ROUGH }, 200_000);
}

#[test]
fn every_planted_bug_is_caught_under_its_name() {
    let frozen = Scope { crashes: false, late: 1, messages: [0, 1], ..ROUGH };
    let wedged = Scope { crashes: false, wedges: true, messages: [1, 0], ..ROUGH };
    let calm = Scope { stops: false, ..CALM };
    let planted = [
        (Bug::SettleWithoutEpoch, Violation::WrittenByAStranger, frozen),
        (Bug::ReleaseBeforeQuiet, Violation::Repeated, calm),
        (Bug::BuryWhateverTheBeat, Violation::BuriedAlive, frozen),
        (Bug::CountFromTheQuestion, Violation::BuriedAlive, frozen),
        (Bug::JudgeByOwnLease, Violation::BuriedAlive, Scope { uneven: true, ..frozen }),
        (Bug::AcquireWithoutEpoch, Violation::OneEpochTwoOwners, calm),
        (Bug::RenewForTheWedged, Violation::RenewedForTheWedged, wedged),
        (Bug::LeaseUnchecked, Violation::StartedWithoutLease, frozen),
        (Bug::GainWithoutHole, Violation::Stuck, Scope { messages: [1, 1], ..ROUGH }),
        (Bug::LeaveAsOwner, Violation::OwnedByNobody, CALM),
        (Bug::PlanOscillates, Violation::Stuck, calm),
        (Bug::PollOutlivesOwnership, Violation::Repeated, Scope { slow_polls: true, ..CALM }),
    ];
    for (bug, violation, scope) in planted {
        match explore(&Scope { bug: Some(bug), ..scope }) {
            Err(wrong) => assert_eq!(wrong.violation, violation, "{bug:?} after {:?}", wrong.steps),
            Ok(explored) => panic!("{bug:?}: {} states and nobody noticed", explored.states),
        }
    }
    println!("caught {0}/{0}", planted.len());
}
