//! What follows from the circuit breakers of the destinations.
//!
//! Each relay judges for itself: one that cannot reach a destination from where it runs must not stop the others. What
//! stands open is told in the relay's row, for people to see, and so are rate limits that attempts have to wait for.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{Answer, Engine};
use crate::breaker::Turn;
use crate::duration;
use crate::event::Event;
use crate::lane::Work;
use crate::sink::Judgement;
use crate::store::{Circuit, StoreError};

/// What the relay's row says of them.
#[derive(Default)]
pub(super) struct Circuits {
    told: Vec<Circuit>,
    /// What is being written.
    telling: Option<Vec<Circuit>>,
    again_at: Option<Instant>,
}

impl Engine {
    /// An attempt was judged: the destination may be closed, or open again.
    pub(super) fn judge_circuit(
        &mut self,
        lane: usize,
        work: &Work,
        judgement: &Judgement,
        took: Duration,
        now: Instant,
    ) {
        let state = &mut self.lanes[lane];
        let turn = state.breaker.judged(judgement.verdict, work.message.id, took, now, &mut rand::rng());
        let Some(turn) = turn else { return };
        let destination = state.served.name.to_string();
        match turn {
            Turn::Opened(pause) => {
                state.cause = judgement.said();
                // For people, and never less than a second. What was said stays where only people with rights in the
                // database see it: it may repeat what was sent.
                let (code, seconds) = (&judgement.code, Duration::from_secs(pause.as_secs()));
                let pause_text = duration::format(seconds).to_string();
                warn!(
                    destination,
                    code,
                    pause = pause_text,
                    "the circuit opens: nothing is attempted for that long; `relay status` says what the last attempt met"
                );
                self.tell_event(&Event::CircuitOpened { destination, pause });
            }
            Turn::Closed => {
                info!(destination, "the circuit closes: the destination answers again");
                self.tell_event(&Event::CircuitClosed { destination });
            }
        }
        self.open_or_close(lane, self.is_paused(lane), now);
    }

    /// Writes what has changed.
    pub(super) fn tell_circuits(&mut self, now: Instant) {
        if self.circuits.telling.is_some() || self.circuits.again_at.is_some_and(|at| now < at) {
            return;
        }
        let circuits: Vec<Circuit> = self
            .lanes
            .iter()
            .filter_map(|state| {
                let limited = || state.pacer.in_the_way(now).map(|limit| ("limited", limit.to_string()));
                let (word, cause) = state.breaker.word().map(|word| (word, state.cause.clone())).or_else(limited)?;
                Some(Circuit { destination: state.served.name.to_string(), state: word.to_owned(), cause })
            })
            .collect();
        if circuits == self.circuits.told {
            return;
        }
        self.circuits.telling = Some(circuits.clone());
        let (store, answers, relay) = (self.store.clone(), self.answers.clone(), self.relay);
        tokio::spawn(async move {
            let result = store.relay_circuits(relay, &circuits).await;
            let _ = answers.send(Answer::Circuits(result));
        });
    }

    pub(super) fn circuits_told(&mut self, result: Result<(), StoreError>) {
        let Some(telling) = self.circuits.telling.take() else { return };
        match result {
            Ok(()) => {
                self.outages.recovered("relay_circuits");
                (self.circuits.told, self.circuits.again_at) = (telling, None);
            }
            Err(error) => {
                let pause = self.outages.failed("relay_circuits", &error);
                self.circuits.again_at = Some(Instant::now() + pause);
            }
        }
    }
}
