//! The harness' own promises about processes.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use outbox_tests::process::{Process, Signal, free_address};

const LIMIT: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn both_outputs_and_the_exit_status_are_kept() {
    let ended = Process::run(shell("echo one; echo two >&2; echo three; exit 3"), LIMIT);
    assert_eq!(ended.status.code(), Some(3));
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("one\nthree\n", "two\n"));
}

#[test]
fn line_is_awaited_and_a_signal_arrives() {
    let script = "trap 'echo got it; exit 0' TERM; echo up 7 >&2; while :; do sleep 0.05; done";
    let process = Process::start(shell(script));
    assert_eq!(process.wait_for_line("up", LIMIT), "up 7");
    process.signal(Signal::Term);
    process.wait_for_line("got it", LIMIT);
    assert!(process.wait(LIMIT).status.success());
}

#[test]
#[should_panic(expected = "ended without saying `ready`; it said:\nsorry")]
fn waiting_for_a_line_fails_at_once_when_the_process_ends() {
    Process::start(shell("echo sorry")).wait_for_line("ready", Duration::from_secs(3600));
}

#[test]
fn dropped_process_is_killed() {
    let process = Process::start(shell("echo up; exec sleep 1000"));
    process.wait_for_line("up", LIMIT);
    let alive = |id: u32| shell(&format!("kill -0 {id}")).output().unwrap().status.success();
    let id = process.id();
    assert!(alive(id));
    drop(process);
    assert!(!alive(id));
}

#[test]
fn killed_process_tells_so() {
    use std::os::unix::process::ExitStatusExt;
    let process = Process::start(shell("echo up; exec sleep 1000"));
    process.wait_for_line("up", LIMIT);
    assert_eq!(process.kill().status.signal(), Some(9));
}

#[test]
fn free_address_can_be_listened_on() {
    TcpListener::bind(free_address()).unwrap();
}
