//! Who may pass, who waits, and what each gate keeps in memory.

use super::*;

fn key(name: &str) -> Key {
    name.as_bytes().into()
}

fn is_row_admitted(gate: &mut KeyGate<()>, key: &Key, seq: i64, look: u64) -> bool {
    gate.admit_row(key, seq, look, ()) == Admission::Go(())
}

#[test]
fn rows_that_keep_no_order_take_turns_with_the_others_of_their_key() {
    let mut gate = KeyGate::default();
    let k = key("k");
    assert_eq!(gate.admit(&k, 1, "1"), Admission::Go("1"));
    for (seq, name) in [(2, "2"), (3, "3"), (4, "4")] {
        assert_eq!(gate.admit(&k, seq, name), Admission::InLine);
    }
    for name in ["a", "b"] {
        assert_eq!(gate.admit_aside(&k, 2, name), Admission::InLine);
    }
    assert_eq!(gate.admit_aside(&k, 2, "c"), Admission::Parked("c"));
    assert_eq!(gate.crowded().collect::<Vec<_>>(), [&k]);
    assert_eq!(gate.in_line(), 5);
    let passed: Vec<_> = std::iter::from_fn(|| gate.passed(&k)).collect();
    assert_eq!(passed, ["a", "2", "b", "3", "4"]);
    assert!(gate.take_freed() && gate.crowded().next().is_none(), "there is room for more");
    assert!(gate.keys.is_empty() && gate.in_line() == 0);
}

#[test]
fn rows_that_keep_no_order_do_not_keep_the_head_of_their_key_waiting() {
    let mut gate = KeyGate::default();
    let k = key("k");
    for name in ["a", "b", "c", "d"] {
        let _ = gate.admit_aside(&k, 9, name);
    }
    assert_eq!(gate.admit_row(&k, 7, 1, "head"), Admission::InLine);
    assert_eq!(gate.admit_row(&k, 8, 1, "next"), Admission::Parked("next"), "one look has one head");
    assert_eq!(gate.passed(&k), Some("head"));
    assert_eq!(gate.passed(&k), Some("b"));
    assert!(gate.take_freed(), "the next head may come");
    assert_eq!(gate.admit_row(&k, 8, 2, "next"), Admission::InLine);
    // The head fails: all of them are given back, and may go at the next look.
    assert_eq!(gate.passed(&k), Some("next"));
    assert_eq!(gate.park(&k), ["c", "d"]);
    assert_eq!(gate.admit_aside(&k, 9, "c"), Admission::Go("c"), "a parked key does not hold them up");
}

#[test]
fn one_message_of_a_key_is_out_and_the_rest_follow_in_order() {
    let mut gate = KeyGate::default();
    let k = key("k");
    assert_eq!(gate.admit(&k, 1, 1), Admission::Go(1));
    assert_eq!(gate.admit(&k, 3, 3), Admission::InLine);
    assert_eq!(gate.admit(&k, 2, 2), Admission::InLine, "a late commit takes its place");
    assert_eq!(gate.admit(&key("other"), 4, 4), Admission::Go(4));
    assert_eq!(gate.in_line(), 2);
    assert_eq!(gate.passed(&k), Some(2));
    assert_eq!(gate.passed(&k), Some(3));
    assert_eq!(gate.passed(&k), None);
    assert_eq!(gate.admit(&k, 5, 5), Admission::Go(5));
}

#[test]
fn followers_of_a_failed_head_become_rows_until_a_look_up_knows_them() {
    let mut gate = KeyGate::default();
    let k = key("k");
    assert_eq!(gate.admit(&k, 1, 1), Admission::Go(1));
    assert_eq!(gate.admit(&k, 2, 2), Admission::InLine);
    assert_eq!(gate.park(&k), [2]);
    gate.writing(&k, None);
    gate.writing(&k, None);
    assert_eq!(gate.admit(&k, 3, 3), Admission::Parked(3));
    gate.written(&k, None, 7, 1);
    assert_eq!(gate.admit(&k, 3, 3), Admission::Parked(3), "one row is not written yet");
    gate.written(&k, None, 7, 1);
    gate.read_done(6);
    assert_eq!(gate.admit(&k, 3, 3), Admission::Parked(3), "look-up 6 began before the commit");
    gate.read_done(7);
    assert_eq!(gate.admit(&k, 3, 3), Admission::Go(3));
}

#[test]
fn a_key_parked_again_meanwhile_stays_parked() {
    let mut gate = KeyGate::default();
    let k = key("k");
    gate.writing(&k, None);
    gate.written(&k, None, 2, 1);
    gate.writing(&k, None);
    gate.read_done(5);
    assert_eq!(gate.admit(&k, 9, ()), Admission::Parked(()));
    gate.written(&k, None, 6, 1);
    gate.read_done(6);
    assert_eq!(gate.admit(&k, 9, ()), Admission::Go(()));
}

#[test]
fn a_row_waits_for_the_message_that_is_out() {
    let mut gate: KeyGate<()> = KeyGate::default();
    let k = key("k");
    assert!(is_row_admitted(&mut gate, &k, 1, 0));
    assert!(!is_row_admitted(&mut gate, &k, 1, 0));
    assert_eq!(gate.passed(&k), None);
    assert!(is_row_admitted(&mut gate, &k, 1, 0));
}

#[test]
fn a_row_waits_for_an_older_message_whose_row_is_not_written_yet() {
    let mut gate: KeyGate<()> = KeyGate::default();
    let k = key("k");
    // 5 is still on its way to another destination, so its row comes later than the one of 6.
    gate.writing(&k, Some(5));
    gate.writing(&k, Some(6));
    gate.written(&k, Some(6), 1, 1);
    assert!(!is_row_admitted(&mut gate, &k, 6, 1), "5 would be overtaken");
    gate.writing(&k, Some(7));
    assert!(
        is_row_admitted(&mut gate, &k, 4, 1),
        "nothing older is on its way; a stream of younger ones must not stop the head"
    );
    gate.passed(&k);
    gate.written(&k, Some(5), 2, 3);
    assert!(!is_row_admitted(&mut gate, &k, 6, 2), "look 2 began before 5 was written and takes 6 for the head");
    gate.look_done(2);
    assert!(is_row_admitted(&mut gate, &k, 6, 3), "look 3 knows who is first");
}

#[test]
fn a_row_that_was_refused_is_told_of_once_when_its_key_is_free() {
    let k = key("k");
    // For the one that is out.
    let mut gate: KeyGate<()> = KeyGate::default();
    assert_eq!(gate.admit(&k, 1, ()), Admission::Go(()));
    assert_eq!(gate.admit(&k, 2, ()), Admission::InLine);
    assert!(!is_row_admitted(&mut gate, &k, 5, 1) && !gate.take_freed());
    assert_eq!(gate.passed(&k), Some(()));
    assert!(!gate.is_freed(), "the next of its line is out");
    assert_eq!(gate.passed(&k), None);
    assert!(gate.is_freed() && gate.take_freed() && !gate.take_freed());
    assert!(is_row_admitted(&mut gate, &k, 5, 2));
    gate.passed(&k);
    assert!(!gate.is_freed(), "nobody was refused since");

    // For one that fails.
    assert_eq!(gate.admit(&k, 6, ()), Admission::Go(()));
    assert!(!is_row_admitted(&mut gate, &k, 5, 3));
    gate.park(&k);
    assert!(gate.take_freed());

    // For an older one without a row, however often it is looked at.
    gate.writing(&k, Some(6));
    for look in 4..9 {
        assert!(!is_row_admitted(&mut gate, &k, 7, look) && !gate.take_freed());
    }
    gate.written(&k, Some(6), 1, 10);
    assert!(gate.take_freed());
    assert!(!is_row_admitted(&mut gate, &k, 7, 9), "look 9 began before 6 was written");
    assert!(gate.take_freed(), "the next look knows");
    assert!(is_row_admitted(&mut gate, &k, 7, 10));
}

#[test]
fn what_failed_and_has_no_row_yet_may_go_again_before_all_that_came_behind_it() {
    let mut gate: KeyGate<()> = KeyGate::default();
    let k = key("k");
    assert!(!gate.admit_again(&k, 1), "nobody knows it");
    assert_eq!(gate.admit(&k, 1, ()), Admission::Go(()));
    assert_eq!(gate.admit(&k, 2, ()), Admission::InLine);
    assert_eq!(gate.park(&k), [()]);
    gate.writing(&k, Some(1));
    gate.writing(&k, Some(2));
    gate.written(&k, Some(2), 1, 1);
    assert!(!gate.moves(&k) && !gate.admit_again(&k, 2), "1 goes first");
    assert!(gate.admit_again(&k, 1) && !gate.admit_again(&k, 1), "one at a time");
    assert!(!is_row_admitted(&mut gate, &k, 2, 1), "2 stands in a row by now");
    assert_eq!(gate.admit(&k, 3, ()), Admission::Parked(()));

    // It fails once more, and then it is through: it becomes no row.
    gate.park(&k);
    gate.writing(&k, Some(1));
    assert!(gate.admit_again(&k, 1));
    assert_eq!(gate.passed(&k), None);
    gate.written(&k, Some(1), 5, 5);
    assert!(gate.moves(&k) && !gate.admit_again(&k, 1));
    gate.read_done(5);
    gate.look_done(5);
    assert!(is_row_admitted(&mut gate, &k, 2, 5));
    gate.passed(&k);
    assert!(gate.keys.is_empty(), "{:?}", gate.keys);

    // Once it stands in a row it is the table's.
    gate.writing(&k, Some(8));
    gate.written(&k, Some(8), 6, 6);
    assert!(!gate.admit_again(&k, 8));
}

#[test]
fn a_row_that_is_never_written_stops_nobody() {
    let mut gate: KeyGate<()> = KeyGate::default();
    let k = key("k");
    gate.writing(&k, Some(5));
    gate.written(&k, Some(5), 1, 1);
    // Its partition was lost while it was being written: the answer comes all the same.
    gate.written(&k, Some(5), 1, 1);
    gate.read_done(1);
    gate.look_done(1);
    assert!(gate.keys.is_empty());
}

#[test]
fn a_line_is_cut_from_the_first_wanted_one_on_and_what_is_before_it_goes_on() {
    let mut gate = KeyGate::default();
    for name in ["a", "b"] {
        for seq in 1..=5 {
            let _ = gate.admit(&key(name), seq, (name, seq));
        }
    }
    let cut = gate.cut_lines(|work| matches!(work, ("a", 3 | 5)));
    assert_eq!(cut, [("a", 3), ("a", 4), ("a", 5)]);
    assert_eq!(gate.in_line(), 5);
    assert_eq!(gate.passed(&key("a")), Some(("a", 2)));
    assert_eq!(gate.passed(&key("a")), None);
    assert_eq!(gate.passed(&key("b")), Some(("b", 2)), "others stay as they are");
    assert!(gate.cut_lines(|work| work.0 == "a").is_empty());
}

#[test]
fn idle_keys_cost_no_memory() {
    let mut gate = KeyGate::default();
    for n in 0..1000 {
        let k = key(&n.to_string());
        let _ = gate.admit(&k, n, ());
        gate.passed(&k);
        gate.writing(&k, Some(n));
        gate.written(&k, Some(n), 1, 1);
    }
    gate.read_done(1);
    gate.look_done(1);
    assert!(gate.keys.is_empty());
}
