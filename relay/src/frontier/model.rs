//! The frontier against models of the databases, in random schedules, and with each rule left out.
//!
//! A schedule is a list of numbers, each one step: of a producer, of the poll (sent, read, processed), of a settle
//! (sent, begun, committed, heard of), of the other relay, of the database that crashes. What must hold: no committed
//! message is lost, none is handed out before one that had committed before its number was drawn, none is handed out
//! again after its deletion, and no hole outlives the transactions that could fill it.
//!
//! Each rule left out must make the same search find a violation: a model that cannot fail proves nothing.

mod database;
mod reader;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::{Evidence, Rule};
use reader::{AGE_MAX, Climate, Setup, Violation, World};

const BY_AGE: Evidence = Evidence::Ages(AGE_MAX);

/// Always the same schedules, unless `OUTBOX_TEST_EFFORT` asks for so many times as many, and then for others each time.
fn runner(cases: u32) -> (TestRunner, u32) {
    let effort: Option<u32> = std::env::var("OUTBOX_TEST_EFFORT").ok().and_then(|effort| effort.parse().ok());
    let cases = cases * effort.unwrap_or(1);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let runner = match effort {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    (runner, cases)
}

/// Tries `cases` random schedules; none may go wrong.
fn nothing_goes_wrong(setup: Setup, cases: u32) {
    let Setup { evidence, climate, ranges_max, .. } = setup;
    let (mut runner, cases) = runner(cases);
    let outcome = runner.run(&vec(any::<u32>(), 20..260), |schedule| {
        World::run(setup, &schedule).map_err(|violation| TestCaseError::fail(format!("{violation:?}")))
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, schedule)) => {
            World::tell(setup, &schedule);
            panic!("{evidence:?}, {climate:?}: {reason}");
        }
        Err(TestError::Abort(reason)) => panic!("{evidence:?}, {climate:?}: {reason}"),
    }
    println!(
        "{evidence:?}, {climate:?}, ranges {ranges_max:?}: {cases} schedules, 0 lost, 0 overtaken, 0 repeated, 0 holes left"
    );
}

/// Tries schedules, always the same ones, until one goes wrong in the way `expected` names.
fn goes_wrong(setup: Setup, expected: fn(&Violation) -> bool) {
    const MOST: u32 = 20_000;
    let setup = Setup { strict: false, ..setup };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let schedules = vec(any::<u32>(), 100..260);
    for tried in 1..=MOST {
        let schedule = schedules.new_tree(&mut runner).expect("nothing is filtered").current();
        if let Err(violation) = World::run(setup, &schedule)
            && expected(&violation)
        {
            println!("{setup:?}: {violation:?} after {tried} schedules");
            return;
        }
    }
    panic!("{setup:?}: {MOST} schedules and nobody noticed");
}

fn loses(violation: &Violation) -> bool {
    matches!(violation, Violation::Lost(_))
}

fn disorders(violation: &Violation) -> bool {
    matches!(violation, Violation::Overtaken(..))
}

fn without(evidence: Evidence, rule: Rule) -> Setup {
    Setup { left_out: Some(rule), ..Setup::new(evidence) }
}

#[test]
fn nothing_is_lost_or_overtaken_with_snapshots() {
    nothing_goes_wrong(Setup::new(Evidence::Snapshots), 2_500);
    nothing_goes_wrong(Setup { climate: Climate::Calm, ..Setup::new(Evidence::Snapshots) }, 2_500);
}

#[test]
fn nothing_is_lost_when_ranges_merge() {
    for evidence in [Evidence::Snapshots, BY_AGE] {
        nothing_goes_wrong(Setup { ranges_max: Some(2), ..Setup::new(evidence) }, 800);
    }
}

#[test]
fn nothing_is_lost_or_overtaken_by_age() {
    nothing_goes_wrong(Setup::new(BY_AGE), 2_500);
}

#[test]
fn nothing_is_lost_or_overtaken_with_one_writer() {
    nothing_goes_wrong(Setup::new(Evidence::Serial), 1_500);
}

/// One test for each rule left out: the same kind of search has to notice, in the way named.
macro_rules! rules_left_out {
    ($($name:ident: $rule:ident, $evidence:expr, $climate:ident, $wrong:ident;)*) => {
        $(#[test]
        fn $name() {
            goes_wrong(Setup { climate: Climate::$climate, ..without($evidence, Rule::$rule) }, $wrong);
        })*
    };
}

rules_left_out! {
    order_breaks_when_a_page_is_used_although_a_parked_hole_may_have_filled:
        SnapshotFirst, Evidence::Snapshots, Calm, disorders;
    order_breaks_when_the_tail_is_used_after_full_holes:
        FullHolesHideTheTail, Evidence::Snapshots, Rough, disorders;
    messages_are_lost_when_full_holes_count_as_read:
        FullHolesProveNothingBeyond, Evidence::Snapshots, Rough, loses;
    messages_are_lost_when_gaps_are_no_holes:
        GapsAreHoles, Evidence::Snapshots, Rough, loses;
    messages_are_lost_when_a_row_ends_its_whole_hole:
        RowsSplitHoles, Evidence::Snapshots, Rough, loses;
    messages_are_lost_when_a_mark_is_older_than_the_hole:
        MarkAfterTheHole, Evidence::Snapshots, Rough, loses;
    messages_are_lost_when_a_mark_need_not_be_reached:
        MarkMustBeReached, Evidence::Snapshots, Rough, loses;
    messages_are_lost_when_holes_end_that_were_not_looked_into:
        OnlyCoveredIsForgotten, Evidence::Snapshots, Rough, loses;
    order_breaks_when_holes_are_parked_that_were_not_looked_into:
        OnlyCoveredIsParked, Evidence::Snapshots, Calm, disorders;
    messages_are_lost_when_parked_holes_never_come_back:
        UnparkWhenOneEnds, Evidence::Snapshots, Rough, loses;
    messages_are_lost_when_a_gain_is_not_read:
        GainsAreRead, Evidence::Snapshots, Rough, loses;
    messages_are_lost_when_a_gain_ignores_the_poll_under_way:
        GainsCoverPollsUnderWay, Evidence::Snapshots, Rough, loses;
    order_breaks_when_the_tail_is_used_before_a_gain_is_read:
        GainsComeBeforeTheTail, Evidence::Snapshots, Rough, disorders;
    messages_are_lost_when_another_incarnation_changes_nothing:
        IncarnationStartsAnew, Evidence::Snapshots, Rough, loses;
    order_breaks_when_a_page_from_an_earlier_life_is_used:
        StalePagesAreDiscarded, Evidence::Snapshots, Rough, disorders;
    messages_are_lost_when_a_poll_under_way_counts_for_reopened_numbers:
        ReopenedAfterThePoll, Evidence::Snapshots, Rough, loses;

    messages_are_lost_by_age_when_gaps_are_no_holes: GapsAreHoles, BY_AGE, Rough, loses;
    messages_are_lost_by_age_when_young_holes_are_doubted: AgeBeforeForgetting, BY_AGE, Rough, loses;
    messages_are_lost_by_age_when_occupied_holes_are_forgotten: OccupiedIsKept, BY_AGE, Rough, loses;
    messages_are_lost_by_age_when_a_gain_is_not_read: GainsAreRead, BY_AGE, Rough, loses;
    messages_are_lost_by_age_when_another_incarnation_changes_nothing: IncarnationStartsAnew, BY_AGE, Rough, loses;

    messages_are_lost_with_one_writer_when_a_gain_is_not_read: GainsAreRead, Evidence::Serial, Rough, loses;
    messages_are_lost_with_one_writer_when_a_poll_under_way_counts_for_reopened_numbers:
        ReopenedAfterThePoll, Evidence::Serial, Rough, loses;
    messages_are_lost_with_one_writer_when_another_incarnation_changes_nothing:
        IncarnationStartsAnew, Evidence::Serial, Rough, loses;
}

#[test]
fn messages_are_lost_when_ids_are_drawn_after_numbers() {
    goes_wrong(Setup { number_before_xid: true, ..Setup::new(Evidence::Snapshots) }, loses);
}

#[test]
fn messages_are_repeated_when_hands_let_go_as_soon_as_a_settle_returns() {
    let repeats = |violation: &Violation| matches!(violation, Violation::Repeated(_));
    goes_wrong(Setup { hands_let_go_early: true, ..Setup::new(Evidence::Snapshots) }, repeats);
}

/// X1 < X2 < X3. X3 draws number 1; X1 draws 2 and commits; a poll sees 2 under a snapshot whose xmax is X2. X2 ends.
/// Now nobody below X2 is left, but X3 still holds 1. Random schedules hardly ever come here.
fn three_transactions(left_out: Option<Rule>) -> Result<(), Violation> {
    let mut world = World::new(Setup { left_out, strict: false, ..Setup::new(Evidence::Snapshots) });
    let now = std::time::Instant::now();
    let [x1, x2, x3] = [(); 3].map(|()| world.database.begin(false, false, now));
    let at = |world: &World, ticket| world.database.position(ticket).expect("it is open");
    let tx = at(&world, x3);
    world.database.insert(tx, 0, false, now);
    let tx = at(&world, x1);
    world.database.insert(tx, 0, false, now);
    world.database.end(tx, true);
    assert_eq!(world.database.snapshot().xmax, world.database.open[0].xid.expect("X2 has its id"));
    poll(&mut world)?;
    let tx = at(&world, x2);
    world.database.end(tx, true);
    poll(&mut world)?;
    world.draw_mark();
    (0..3).for_each(|_| world.advance_settle(0));
    poll(&mut world)?;
    let tx = at(&world, x3);
    world.database.end(tx, true);
    world.heal()
}

fn poll(world: &mut World) -> Result<(), Violation> {
    (0..3).try_for_each(|_| world.advance_poll(1))
}

#[test]
fn three_transactions_lose_nothing_when_the_mark_is_drawn_after_the_poll() {
    assert_eq!(three_transactions(None), Ok(()));
}

#[test]
fn three_transactions_lose_a_message_when_the_mark_is_the_snapshots_xmax() {
    assert_eq!(three_transactions(Some(Rule::MarkDrawnAfterThePoll)), Err(Violation::Lost(1)));
}

/// X1 runs on, X3 holds number 1. A poll reads under a snapshot that does not know X3 yet (xmax is X3); before its
/// answer arrives a mark above X3 does. Parked on X1 alone, number 1 would be passed by one drawn after its commit.
fn mark_above_the_snapshot(left_out: Option<Rule>) -> Result<(), Violation> {
    let mut world = World::new(Setup { left_out, strict: false, ..Setup::new(Evidence::Snapshots) });
    let now = std::time::Instant::now();
    let [_, x2, x3] = [(); 3].map(|()| world.database.begin(false, false, now));
    let at = |world: &World, ticket| world.database.position(ticket).expect("it is open");
    let tx = at(&world, x3);
    world.database.insert(tx, 0, false, now);
    let tx = at(&world, x2);
    world.database.insert(tx, 0, false, now);
    world.database.end(tx, true);
    poll(&mut world)?;
    world.pass(Duration::from_millis(200));
    (0..2).try_for_each(|_| world.advance_poll(1))?;
    world.draw_mark();
    (0..3).for_each(|_| world.advance_settle(0));
    world.advance_poll(1)?;
    let tx = at(&world, x3);
    world.database.end(tx, true);
    let x4 = world.database.begin(false, false, now);
    let tx = at(&world, x4);
    world.database.insert(tx, 0, false, now);
    world.database.end(tx, true);
    poll(&mut world)?;
    world.heal()
}

#[test]
fn hole_is_not_parked_under_a_snapshot_below_its_mark() {
    assert_eq!(mark_above_the_snapshot(None), Ok(()));
}

#[test]
fn order_breaks_when_holes_are_parked_before_all_candidates_are_known() {
    let outcome = mark_above_the_snapshot(Some(Rule::ParkOnlyWhenXmaxReachedTheMark));
    assert_eq!(outcome, Err(Violation::Overtaken(1, 3)));
}
