//! Starts attempts and acts upon their verdicts.

use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::task::{Id, JoinError};
use tracing::{debug, error};

use super::feed::doom;
use super::{Answer, Engine};
use crate::duration;
use crate::event::{DeliveryRef, Event};
use crate::lane::{Care, Fate, Origin, Work};
use crate::message::{Message, PartitionSet, Seq};
use crate::outcome::{self, Outcome, waits};
use crate::sink::{Attempt, Held, Judgement, Row, Unit};
use crate::solitude::Turn;
use crate::store::{Dies, DueIn, Reason, Remains, State, WaitingChange, Waits};
use crate::verdict::Verdict;

/// An attempt under way.
pub(super) struct Running {
    lane: usize,
    work: Work,
    began: Instant,
    abort: tokio::task::AbortHandle,
}

impl Running {
    /// The number of the message, when it was read in `outbox_messages`.
    pub(super) fn fresh(&self) -> Option<Seq> {
        (self.work.origin == Origin::Fresh).then_some(self.work.message.seq)
    }

    /// The same while it is attempted for the first time.
    pub(super) fn fresh_first(&self) -> Option<Seq> {
        self.fresh().filter(|_| self.work.first_attempt_at.is_none())
    }

    /// The partition it is of.
    pub(super) fn partition_no(&self) -> u8 {
        self.work.message.partition_no
    }

    /// The lane and the delivery, which is no longer attempted.
    pub(super) fn into_work(self) -> (usize, Work) {
        (self.lane, self.work)
    }
}

impl Engine {
    /// Starts what the lanes allow.
    pub(super) fn start_attempts(&mut self, now: Instant) {
        self.start_marked(now);
        let turn = self.turn(now);
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].in_process && turn != Turn::Everybody {
                continue;
            }
            while self.lanes[lane].pacer.wait(now).is_none()
                && let Some(mut work) = self.lanes[lane].lane.start_next()
            {
                last_call(&mut work, now);
                if work.doomed.is_none() {
                    self.lanes[lane].pacer.started(now);
                }
                self.begin(lane, work, now);
            }
            let state = &mut self.lanes[lane];
            if state.lane.queued() > 0 && !state.lane.is_closed() && state.pacer.wait(now).is_some() {
                state.pacer.presses(now);
            }
        }
        if turn == Turn::One {
            self.start_alone(now);
        }
        self.send_starts(now);
    }

    /// When a lane that has something to start may do so by its rate limit.
    pub(super) fn pace_wake(&self, now: Instant) -> Option<Instant> {
        let waiting = self.lanes.iter().filter(|state| state.lane.queued() > 0 && !state.lane.is_closed());
        waiting.filter_map(|state| state.pacer.wait(now)).min()
    }

    /// Begins with what a lane has let go.
    pub(super) fn begin(&mut self, lane: usize, work: Work, now: Instant) {
        match &work.doomed {
            Some((reason, text)) => {
                let policy = &self.lanes[lane].served.policy;
                let outcome = outcome::doomed(&work, *reason, text, policy, now);
                if *reason == Reason::Crashed {
                    let destination = &policy.destination;
                    error!(message.id = %work.message.id, destination, "a message is given up: {text}");
                }
                self.conclude(lane, &work, outcome);
            }
            None => match work.care {
                Care::Plain => self.start_attempt(lane, work, now),
                Care::Ahead => self.start_ahead(lane, work, now),
                Care::Marked | Care::Alone => self.mark(lane, work),
            },
        }
    }

    pub(super) fn start_attempt(&mut self, lane: usize, work: Work, now: Instant) {
        let unit = self.unit(&work);
        let served = &self.lanes[lane].served;
        let (destination, number, timeout) = (served.name.clone(), work.attempts + 1, served.timeout);
        let attempt = Attempt { destination, number, timeout, unit };
        let (sink, message) = (served.sink.clone(), work.message.clone());
        let abort = self.attempts.spawn(async move {
            let began = Instant::now();
            let judgement =
                match tokio::time::timeout(timeout.saturating_add(GRACE), sink.attempt(&message, &attempt)).await {
                    Ok(judgement) => judgement,
                    Err(_) => {
                        let said = format!("no answer within {}", duration::format(timeout));
                        Judgement { maybe: true, ..Judgement::failed(Verdict::Retry { after: None }, "timeout", said) }
                    }
                };
            (judgement, began.elapsed())
        });
        self.running.insert(abort.id(), Running { lane, work, began: now, abort });
    }

    /// The row this delivery lives in.
    fn unit(&self, work: &Work) -> Unit {
        let Message { seq, id, partition_no, .. } = *work.message;
        let epoch = self.epochs.get(&partition_no).copied().unwrap_or_default();
        let held = Held { partition_no, relay: self.relay, epoch };
        match work.origin {
            Origin::Waiting(row) => Unit::Waiting { id: row, message_id: id, attempts: work.attempts, held },
            Origin::Fresh => self.hands.sole_routes_version(seq).map_or(Unit::Shared, |routes_version| Unit::Message {
                seq,
                id,
                routes_version,
                held,
            }),
        }
    }

    /// An attempt ended.
    pub(super) fn judged(&mut self, joined: Result<(Id, (Judgement, Duration)), JoinError>) {
        let (id, judgement, took) = match joined {
            Ok((id, (judgement, took))) => (id, judgement, took),
            Err(failed) => {
                let text = if failed.is_panic() { "the attempt panicked" } else { "the attempt was aborted" };
                (failed.id(), Judgement::failed(Verdict::Retry { after: None }, "panic", text), Duration::ZERO)
            }
        };
        // Aborted attempts were taken out when they were aborted.
        let Some(Running { lane, work, began, .. }) = self.running.remove(&id) else { return };
        let now = Instant::now();
        let took = if took.is_zero() { now.saturating_duration_since(began) } else { took };
        debug!(
            message.id = %work.message.id,
            destination = %self.lanes[lane].served.name,
            attempt = work.attempts + 1,
            verdict = judgement.verdict.name(),
            code = %judgement.code,
            "attempt judged"
        );
        if judgement.row == Row::NotFound {
            return self.not_claimed(lane, &work, &judgement, took, now);
        }
        if judgement.verdict != Verdict::Undecodable {
            self.tell(
                |delivery| Event::Attempted {
                    delivery,
                    attempt: work.attempts + 1,
                    verdict: judgement.verdict,
                    code: judgement.code.clone(),
                    took,
                },
                lane,
                &work,
            );
        }
        let policy = &self.lanes[lane].served.policy;
        let outcome = outcome::outcome(&work, &judgement, policy, took, Utc::now(), now, &mut rand::rng());
        match judgement.verdict {
            // It answers, and asks not to be asked; or nobody was.
            Verdict::Hold { .. } | Verdict::Undecodable => {}
            Verdict::Delivered | Verdict::Reject { .. } => self.lanes[lane].lane.attempted(true),
            Verdict::Retry { .. } | Verdict::Misconfigured => self.lanes[lane].lane.attempted(false),
        }
        match judgement.verdict {
            Verdict::Hold { .. } => self.hold(lane, &outcome, now),
            Verdict::Reject { gone: true } => self.pause_gone(lane),
            _ => {}
        }
        self.judge_circuit(lane, &work, &judgement, took, now);
        if judgement.row == Row::Deleted && work.origin == Origin::Fresh {
            self.ended_by_sink(lane, &work);
        } else {
            // A waiting row that is gone is settled all the same: that lets the next of its key go.
            self.conclude(lane, &work, outcome);
        }
    }

    /// The sink has deleted the message itself, and that has committed.
    fn ended_by_sink(&mut self, lane: usize, work: &Work) {
        let behind = self.lanes[lane].lane.finished(work, Fate::Through);
        debug_assert!(behind.is_empty(), "those behind a message that is through go on");
        self.hands.settled(work.message.seq, self.feed.next_read());
    }

    /// The row was not as it had been read, and nobody was called. Only a settle can tell why: it is refused where the row
    /// is gone, and finds newer routes where those have changed. A waiting row that is there after all, as it was read, is
    /// out of the handler's sight: that counts as a failure like any other, and is told and ended like one.
    fn not_claimed(&mut self, lane: usize, work: &Work, judgement: &Judgement, took: Duration, now: Instant) {
        let outcome = match work.origin {
            Origin::Fresh => {
                self.hands.routes_outdated(work.message.seq, self.settling.routing_read());
                Outcome::Remains(waits(State::Retry, work.in_order, DueIn::Pause(Duration::ZERO)))
            }
            Origin::Waiting(_) => {
                let policy = &self.lanes[lane].served.policy;
                outcome::outcome(work, judgement, policy, took, Utc::now(), now, &mut rand::rng())
            }
        };
        self.dispose(lane, work, outcome);
    }

    /// Acts upon an outcome: frees the key or parks it, and passes the outcome on to the settle.
    fn conclude(&mut self, lane: usize, work: &Work, outcome: Outcome) {
        match &outcome {
            Outcome::Delivered => {}
            Outcome::Remains(Remains::Waits(Waits { due: DueIn::Pause(pause), .. })) => {
                let pause = *pause;
                self.tell(|delivery| Event::Waiting { delivery, pause }, lane, work);
            }
            Outcome::Remains(Remains::Waits(_)) => {}
            Outcome::Remains(Remains::Dies(Dies { reason, .. })) => {
                let reason = *reason;
                self.tell(|delivery| Event::DeadLettered { delivery, reason }, lane, work);
            }
        }
        self.dispose(lane, work, outcome);
    }

    /// The same, untold.
    pub(super) fn dispose(&mut self, lane: usize, work: &Work, outcome: Outcome) {
        let fate = outcome.fate();
        let behind = self.lanes[lane].lane.finished(work, fate);
        let name = self.lanes[lane].served.name.clone();
        if fate == Fate::Stays {
            self.lanes[lane].lane.writing(work);
        }
        match work.origin {
            Origin::Fresh => {
                if let (Fate::Through, Some(_), Some(key)) = (fate, work.first_attempt_at, &work.message.ordering_key) {
                    // It was to become a row, and does not.
                    let (next_read, next_look) = (self.feed.next_read(), self.due.next_number());
                    self.lanes[lane].lane.written(key, Some(work.message.seq), next_read, next_look);
                }
                let remains = match outcome {
                    Outcome::Delivered => None,
                    Outcome::Remains(remains) => Some(remains),
                };
                self.conclude_fresh(&work.message, &name, remains);
            }
            Origin::Waiting(id) => {
                let change = match outcome {
                    Outcome::Delivered => WaitingChange::Delivered,
                    Outcome::Remains(Remains::Waits(waits)) => WaitingChange::Waits(waits),
                    Outcome::Remains(Remains::Dies(dies)) => WaitingChange::Dies(dies),
                };
                self.conclude_row(id, work, &name, change);
            }
        }
        if let (Origin::Waiting(_), true, Some(key)) = (work.origin, work.in_order, &work.message.ordering_key) {
            match fate {
                Fate::Through => self.row_through(lane, key, work.message.seq),
                Fate::Stays => self.row_stays(lane, key),
            }
        }
        self.step_back(lane, behind);
    }

    /// Those behind one that stays are not attempted: fresh messages become rows, rows are simply read again later.
    pub(super) fn step_back(&mut self, lane: usize, behind: Vec<Work>) {
        for follower in behind {
            match follower.origin {
                Origin::Fresh => {
                    self.must_wait(lane, &follower, waits(State::Blocked, true, DueIn::Pause(Duration::ZERO)));
                }
                Origin::Waiting(id) => {
                    self.due.forget(id);
                    if let Some(key) = &follower.message.ordering_key {
                        self.row_stays(lane, key);
                    }
                }
            }
        }
    }

    fn tell(&self, event: impl FnOnce(DeliveryRef) -> Event, lane: usize, work: &Work) {
        if let Some(listener) = &self.listener {
            listener(&event(DeliveryRef {
                message_id: work.message.id,
                topic: work.message.topic.clone(),
                destination: self.lanes[lane].served.name.to_string(),
            }));
        }
    }

    /// Tells who listens, if anybody does.
    pub(super) fn tell_event(&self, event: &Event) {
        if let Some(listener) = &self.listener {
            listener(event);
        }
    }

    /// A message is given up that never had a destination.
    pub(super) fn tell_expired(&self, message: &Message) {
        if let Some(listener) = &self.listener {
            let Message { id, topic, .. } = message;
            let delivery = DeliveryRef { message_id: *id, topic: topic.clone(), destination: String::new() };
            listener(&Event::DeadLettered { delivery, reason: Reason::Expired });
        }
    }

    /// The receiver is gone for good: the destination pauses, visibly, until a person resumes it.
    fn pause_gone(&mut self, lane: usize) {
        let name = self.lanes[lane].served.name.clone();
        error!(destination = %name, "the receiver answered that it is gone; the destination is paused");
        self.open_or_close(lane, true, Instant::now());
        self.lanes[lane].paused_until_read = u64::MAX;
        let (store, answers) = (self.store.clone(), self.answers.clone());
        tokio::spawn(async move {
            // Until it stands in the table, or nobody is there any more who keeps it in mind.
            while let Err(error) = store.destination_pause(&name, "relay", "the receiver answered 410 Gone", None).await
            {
                error!(destination = %name, error = %crate::cause::chain(&error), "the pause could not be recorded");
                tokio::time::sleep(PAUSE_AGAIN).await;
                if answers.is_closed() {
                    return;
                }
            }
            let _ = answers.send(Answer::Paused { lane });
        });
    }

    /// Aborts attempts of lost partitions; nothing is written about them.
    pub(super) fn abort_attempts(&mut self, lost: PartitionSet) {
        let ids: Vec<Id> = self
            .running
            .iter()
            .filter(|(_, running)| lost.contains(running.work.message.partition_no))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(running) = self.running.remove(&id) {
                running.abort.abort();
                for follower in self.lanes[running.lane].lane.finished(&running.work, Fate::Through) {
                    debug_assert!(lost.contains(follower.message.partition_no), "a key has one partition");
                }
            }
        }
    }
}

/// What can never be delivered, or has expired since it was read, is given up now.
pub(super) fn last_call(work: &mut Work, now: Instant) {
    work.doomed = work.doomed.take().or_else(|| doom(&work.message, now));
}

/// How much longer an attempt may take whose sink does not keep to its time.
const GRACE: Duration = Duration::from_secs(1);

/// Between two tries to record a pause.
const PAUSE_AGAIN: Duration = Duration::from_secs(1);
