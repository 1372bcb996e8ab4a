//! A relay with handlers of which some messages kill the process.
//!
//! `outbox-test-poison URL FILE PAUSE_MS AFTER`: what the handlers are given goes to FILE, one line when an attempt begins and
//! one when it ends: `begin PID DESTINATION BODY` and `done PID DESTINATION BODY`. A body that begins with `poison` aborts
//! the process, one that begins with `late` does so from its second attempt on and fails at the first. Other bodies are
//! accepted after PAUSE_MS. AFTER is `continue` or `block`. Used by `it/poison.rs`.

// Whatever does not work out here fails the test that started this.
#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use relay::message::Message;
use relay::retry::RetryPolicy;
use relay::sink::AfterDeadLetter;
use relay::{Context, Handler, HandlerResult, Relay};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    relay::telemetry::start();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, file, pause, after] = arguments.try_into().unwrap();
    let file = Arc::new(OpenOptions::new().append(true).create(true).open(file).unwrap());
    let pause = Duration::from_millis(pause.parse().unwrap());
    let handler = |name: &'static str| {
        let file = file.clone();
        Handler::raw(name, move |message: Message, context: Context| {
            let file = file.clone();
            async move { handle(&file, &message, &context, pause).await }
        })
    };
    let after = if after == "block" { AfterDeadLetter::Block } else { AfterDeadLetter::Continue };
    Relay::builder(url)
        .name(format!("poison-{}", std::process::id()))
        .lease(Duration::from_secs(1))
        .in_hands(64, 64 << 20)
        .poll(Duration::from_millis(1), Duration::from_millis(20))
        .retry(RetryPolicy::pauses(vec![Duration::from_millis(40); 1000]))
        .destination(handler("work").topics(["t"]).after_dead_letter(after))
        .destination(handler("also").topics(["t"]))
        .build()
        .await
        .unwrap()
        .run_until(relay::shutdown_signal())
        .await
        .unwrap();
}

async fn handle(mut file: &File, message: &Message, context: &Context, pause: Duration) -> HandlerResult {
    let body = String::from_utf8_lossy(&message.payload).into_owned();
    let about = format!("{} {} {body}\n", std::process::id(), context.destination());
    // One write for a line: a process that dies leaves whole lines.
    file.write_all(format!("begin {about}").as_bytes())?;
    if context.destination() == "work" {
        if body.starts_with("poison") {
            std::process::abort();
        }
        if body.starts_with("late") {
            if context.attempt() > 1 {
                std::process::abort();
            }
            return Err("not at the first time".into());
        }
    }
    tokio::time::sleep(pause).await;
    file.write_all(format!("done {about}").as_bytes())?;
    Ok(())
}
