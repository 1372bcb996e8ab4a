//! The one loop that owns everything between reading and settling.
//!
//! All decisions are made here, one after another, over pure rooms (frontier, hands, lanes); everything that takes time
//! (a read, an attempt, a settle) runs beside it and comes back as an answer. So no two decisions ever race, and a slow
//! database or destination never keeps the loop from the others.
//!
//! Invariants
//! - At most one feed operation is under way: polls, probes, sweeps and the look-up of waiting keys follow one another.
//! - What was read stays in hands until a read that began after its settle committed has answered.
//! - Nothing starts, and nothing is fed, unless the lease is known to be held.
//! - A store call is never cancelled: its task runs to its end even when the loop is gone.
//!
//! The steps live beside their subject: `feed` reads, `due` fetches waiting rows, `attempt` starts and judges, `settle`
//! writes outcomes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::breaker::Breaker;
use crate::event::Listener;
use crate::frontier::Frontier;
use crate::hands::Hands;
use crate::lane::{Lane, LaneLimits, Origin, Work};
use crate::membership::Ownership;
use crate::message::{PartitionSet, RelayId, Seq};
use crate::moment::Moment;
use crate::outage::Outages;
use crate::outcome::Policy;
use crate::rate::{Pacer, RateLimit};
use crate::route::Routes;
use crate::sink::{Judgement, Sink};
use crate::store::{Routing, Store, StoreError};

mod attempt;
mod circuit;
mod clock;
mod due;
mod feed;
mod followers;
mod hold;
mod inherit;
mod ownership;
mod routing;
mod search;
mod settle;
mod start;
mod stuck;
mod unrouted;

/// How the loop paces itself and what it may hold.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Pause between polls while there is work.
    pub poll_busy: Duration,
    /// The longest pause between polls when there is none.
    pub poll_idle: Duration,
    /// Messages in hands, at most.
    pub in_hands: usize,
    /// Their bytes, at most (overrun by one page).
    pub in_hands_bytes: usize,
    /// How long attempts may go on after the loop was asked to stop.
    pub shutdown_grace: Duration,
}

/// A destination this relay serves.
#[derive(Clone)]
pub(crate) struct Served {
    /// Its name.
    pub name: Arc<str>,
    /// Speaks to it.
    pub sink: Arc<dyn Sink>,
    /// How many at a time, and whether in order.
    pub limits: LaneLimits,
    /// What follows from failures.
    pub policy: Policy,
    /// How long an attempt may take.
    pub timeout: Duration,
    /// How often it is called, by all relays together.
    pub rate_limit: Option<RateLimit>,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was asked to stop, and has.
    Stopped,
    /// It was asked to drain, and nothing is left to do now.
    Drained,
    /// The relay was declared dead by another, or its row is gone: start anew under a new identity.
    Expelled,
}

/// What the loop is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Ask {
    /// Deliver until told otherwise.
    #[default]
    Run,
    /// Deliver what is there, then end. Messages above this number are left where they are: they came later, and a drain
    /// beside busy producers has to end.
    Drain {
        /// The highest number that had been committed.
        until: Seq,
    },
    /// Stop feeding, finish, settle, end.
    Stop,
    /// End at once; what was not settled is delivered again.
    Abandon,
}

pub(crate) struct Engine {
    store: Arc<dyn Store>,
    relay: RelayId,
    pace: Pace,
    listener: Option<Listener>,
    ticks: Arc<AtomicU64>,

    ownership: watch::Receiver<Ownership>,
    ask: watch::Receiver<Ask>,
    owned: PartitionSet,
    epochs: BTreeMap<u8, i64>,
    /// Owned, and being given up: what is under way of them ends, nothing new begins.
    leaving: PartitionSet,
    /// To be given up, as soon as that is possible.
    giving_up: PartitionSet,
    /// What a dead relay left.
    inheritance: inherit::Inheritance,
    /// Those of them with nothing in hands.
    quiet: watch::Sender<PartitionSet>,
    quiet_next: Instant,
    stuck_next: Instant,

    lanes: Vec<LaneState>,
    lane_by_name: HashMap<String, usize>,
    routing: Routing,
    routes: Arc<Routes>,
    /// Earlier routes, newest last: messages in hands were routed by them.
    old_routes: Vec<routing::OldRoutes>,

    frontier: Frontier,
    hands: Hands,
    feed: feed::Feeding,
    due: due::DueState,
    settling: settle::Settling,
    clock: clock::DatabaseClock,

    circuits: circuit::Circuits,
    starts: start::Starts,
    attempts: JoinSet<(Judgement, Duration)>,
    running: HashMap<tokio::task::Id, attempt::Running>,

    answers: mpsc::UnboundedSender<Answer>,
    inbox: mpsc::UnboundedReceiver<Answer>,
    outages: Outages,
    routing_busy: bool,
    routing_next: Instant,
}

/// A lane and what the loop keeps beside it.
struct LaneState {
    served: Served,
    /// An attempt may end this process.
    in_process: bool,
    lane: Lane,
    breaker: Breaker,
    /// Why it is not closed.
    cause: String,
    pacer: Pacer,
    /// True unless a look made since our last insert found no waiting row and no blocking dead letter.
    occupied: bool,
    /// Looks numbered below this one may not clear `occupied`.
    occupied_until: u64,
    /// When its waiting rows are worth a look.
    next_due: Option<Instant>,
    /// Held here, before the table says so.
    held_until: Option<Instant>,
    unrecorded: Arc<hold::Unrecorded>,
    /// Paused by us: reads of the destinations numbered below this one may not know it yet.
    paused_until_read: u64,
    /// Why it takes nothing, when it does not.
    closed_reason: Option<&'static str>,
}

/// Something that took time has come back.
enum Answer {
    Feed(feed::FeedAnswer),
    Due(due::DueAnswer),
    Settle(settle::SettleAnswer),
    Start(start::StartAnswer),
    Routing(routing::RoutingAnswer),
    Paused { lane: usize },
    Circuits(Result<(), StoreError>),
    BroughtForward(Result<clock::Forwarded, StoreError>),
}

impl Engine {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        store: Arc<dyn Store>,
        relay: RelayId,
        pace: Pace,
        served: Vec<Served>,
        routing: Routing,
        ownership: watch::Receiver<Ownership>,
        quiet: watch::Sender<PartitionSet>,
        ask: watch::Receiver<Ask>,
        listener: Option<Listener>,
        ticks: Arc<AtomicU64>,
    ) -> Engine {
        let (answers, inbox) = mpsc::unbounded_channel();
        let now = Instant::now();
        let lanes: Vec<LaneState> = served
            .into_iter()
            .map(|served| LaneState {
                lane: Lane::new(served.limits),
                in_process: served.sink.runs_in_process(),
                breaker: Breaker::default(),
                cause: String::new(),
                pacer: Pacer::new(served.rate_limit),
                served,
                occupied: true,
                occupied_until: 0,
                next_due: Some(now),
                held_until: None,
                unrecorded: Arc::default(),
                paused_until_read: 0,
                closed_reason: None,
            })
            .collect();
        let lane_by_name = lanes.iter().enumerate().map(|(i, l)| (l.served.name.to_string(), i)).collect();
        let mut engine = Engine {
            frontier: Frontier::new(store.evidence()),
            store,
            relay,
            pace,
            listener,
            ticks,
            ownership,
            ask,
            owned: PartitionSet::EMPTY,
            epochs: BTreeMap::new(),
            leaving: PartitionSet::EMPTY,
            giving_up: PartitionSet::EMPTY,
            inheritance: inherit::Inheritance::default(),
            quiet,
            quiet_next: now,
            stuck_next: now,
            lanes,
            lane_by_name,
            routes: Arc::new(Routes::new(&routing)),
            routing,
            old_routes: Vec::new(),
            hands: Hands::default(),
            feed: feed::Feeding::new(now),
            due: due::DueState::new(now),
            settling: settle::Settling::default(),
            circuits: circuit::Circuits::default(),
            starts: start::Starts::default(),
            clock: clock::DatabaseClock::default(),
            attempts: JoinSet::new(),
            running: HashMap::new(),
            answers,
            inbox,
            outages: Outages::default(),
            routing_busy: false,
            routing_next: now + routing::ROUTING_PERIOD,
        };
        engine.tell_unusable();
        engine.follow_pauses(0, now);
        engine
    }

    /// Runs until asked to stop, drained, or expelled.
    ///
    /// Says too which partitions it knew as its own and had read to the end of what dead relays left there.
    pub(crate) async fn run(mut self) -> (End, PartitionSet) {
        let end = self.until_end().await;
        (end, self.owned.without(self.inheritance.partitions()))
    }

    async fn until_end(&mut self) -> End {
        loop {
            self.ticks.fetch_add(1, Ordering::Relaxed);
            let now = Instant::now();
            self.follow_ownership();
            match self.ask_now() {
                Ask::Run => {}
                Ask::Drain { .. } if self.is_drained(now) => return End::Drained,
                Ask::Drain { .. } => {}
                Ask::Stop => return self.wind_down().await,
                Ask::Abandon => return End::Stopped,
            }
            if self.ownership.borrow().expelled {
                warn!(
                    "this relay's row is gone or older than it was: declared dead by another, or the database was put back; it starts \
                     anew under a new identity"
                );
                return End::Expelled;
            }
            // Nobody renews any more, and a closed channel is always ready: the loop would spin and do nothing.
            if self.ownership.has_changed().is_err() {
                error!("the loop that renews the lease is gone; the relay starts anew under a new identity");
                return End::Expelled;
            }
            self.act(now);
            self.wait(now).await;
        }
    }

    /// Starts whatever can be started now.
    fn act(&mut self, now: Instant) {
        let may_work = self.ownership.borrow().usable_at(Moment::now());
        if may_work {
            self.free_stuck(now);
            self.start_attempts(now);
            self.start_feed(now);
            self.start_due(now);
            self.start_bring_forward(now);
        }
        self.start_settles(now);
        self.start_routing(now);
        self.tell_circuits(now);
        self.tell_quiet(now);
    }

    /// Acts upon every answer and judged attempt that is there; waits for the next one when there is none.
    ///
    /// What came together is taken in one round: fewer, larger settles.
    async fn wait(&mut self, now: Instant) {
        if self.take_ready() {
            return;
        }
        let until = self.next_wake(now);
        tokio::select! {
            biased;
            Some(answer) = self.inbox.recv() => self.take(answer),
            Some(joined) = self.attempts.join_next_with_id(), if !self.attempts.is_empty() => self.judged(joined),
            // Only woken: the next round reads what changed.
            Ok(()) = self.ownership.changed() => self.ownership.mark_changed(),
            _ = self.ask.changed() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
        self.take_ready();
    }

    fn take_ready(&mut self) -> bool {
        let mut any = false;
        while let Some(joined) = self.attempts.try_join_next_with_id() {
            self.judged(joined);
            any = true;
        }
        while let Ok(answer) = self.inbox.try_recv() {
            self.take(answer);
            any = true;
        }
        any
    }

    fn take(&mut self, answer: Answer) {
        match answer {
            Answer::Feed(answer) => self.feed_answered(answer),
            Answer::Due(answer) => self.due_answered(answer),
            Answer::Settle(answer) => self.settle_answered(answer),
            Answer::Start(answer) => self.start_answered(answer),
            Answer::Routing(answer) => self.routing_answered(answer),
            Answer::Circuits(result) => self.circuits_told(result),
            Answer::BroughtForward(result) => self.brought_forward(result),
            Answer::Paused { lane } => self.lanes[lane].paused_until_read = self.settling.routing_read() + 1,
        }
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let mut at = now + TICK;
        if self.ownership.borrow().usable_at(Moment::now()) {
            at = at
                .min(self.feed_wake(now))
                .min(self.due_wake(now))
                .min(self.start_wake().unwrap_or(at))
                .min(self.stuck_wake().unwrap_or(at))
                .min(self.pace_wake(now).unwrap_or(at));
        }
        at.min(self.settle_wake(now)).max(now)
    }

    fn ask_now(&self) -> Ask {
        *self.ask.borrow()
    }

    /// The number above which nothing is fed.
    fn feeds_until(&self) -> Seq {
        match self.ask_now() {
            Ask::Drain { until } => until,
            Ask::Run | Ask::Stop | Ask::Abandon => Seq::MAX,
        }
    }

    /// Stops feeding, lets attempts finish within the grace, writes every outcome.
    async fn wind_down(&mut self) -> End {
        let mut deadline = Instant::now() + self.pace.shutdown_grace;
        let mut cut_off = false;
        info!(attempts = self.running.len(), in_hands = self.hands.open(), "finishing what is under way");
        self.giving_up = PartitionSet::ALL;
        self.give_up_late();
        loop {
            self.ticks.fetch_add(1, Ordering::Relaxed);
            let now = Instant::now();
            let may_work = !cut_off && self.ownership.borrow().usable_at(Moment::now());
            if may_work {
                self.start_marked(now);
                self.start_bring_forward(now);
                // What a dead relay left is read to its end: nobody would know of it any more.
                if !self.inheritance.partitions().is_empty() {
                    self.start_feed(now);
                }
            }
            let inherits = may_work && !self.inheritance.partitions().is_empty() && self.feeds();
            let brings_forward = may_work && !self.clock.partitions().is_empty();
            self.tell_quiet(now);
            if self.ask_now() == Ask::Abandon || self.ownership.borrow().expelled {
                break;
            }
            if self.running.is_empty()
                && self.starts.is_idle()
                && self.settling.is_idle()
                && !inherits
                && !brings_forward
            {
                break;
            }
            if now >= deadline && !cut_off {
                warn!(attempts = self.running.len(), "the grace is over; what is unfinished is delivered again");
                cut_off = true;
                deadline = now + LAST_WRITES;
                self.attempts.abort_all();
                self.leave_unstarted();
                self.keep_half_done();
            } else if now >= deadline {
                warn!(unsettled = self.settling.len(), "not everything could be written; it is delivered again");
                self.tell_unwritten(self.settling.len());
                break;
            }
            self.start_settles(now);
            if self.settling.needs_routes() {
                self.start_routing(now);
            }
            let mut until = self.settle_wake(now).min(deadline).min(now + TICK);
            if inherits {
                until = until.min(self.feed_wake(now));
            }
            let until = until.max(now);
            tokio::select! {
                biased;
                Some(answer) = self.inbox.recv() => self.take(answer),
                Some(joined) = self.attempts.join_next_with_id(), if !self.attempts.is_empty() => self.judged(joined),
                _ = self.ask.changed() => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
        self.attempts.abort_all();
        End::Stopped
    }

    /// What was not finished is simply left in the table, unless another destination already has the message: then the
    /// rest of it becomes a waiting row, or that destination would get it twice. So does what has failed before, with its
    /// attempts.
    fn keep_half_done(&mut self) {
        let mut unfinished: Vec<(usize, Work)> = self.running.drain().map(|(_, running)| running.into_work()).collect();
        unfinished.sort_by_key(|(_, work)| work.first_attempt_at.is_none());
        for (lane, work) in unfinished.into_iter().filter(|(_, work)| work.origin == Origin::Fresh) {
            if work.first_attempt_at.is_some() || self.hands.is_half_done(work.message.seq) {
                self.put_aside(lane, vec![work]);
            }
        }
    }

    /// Nothing in hands, nothing to write but what cannot be written, and a pass over both tables that began after the
    /// drain found nothing to do.
    fn is_drained(&mut self, now: Instant) -> bool {
        if !self.ownership.borrow().settled || !self.clock.partitions().is_empty() {
            return false;
        }
        if !self.is_idle_but_for_aside() {
            self.feed.restart_pass();
            self.due.restart_pass();
            return false;
        }
        // What is set aside may fill the hands: then nothing more is read.
        let reads = self.feeds();
        if reads && !self.inheritance.partitions().is_empty() {
            return false;
        }
        // Idle pauses are for those who wait for new messages.
        if !self.feed.pass_is_empty() {
            self.feed.poll_soon(now);
        }
        if !self.due.pass_is_empty() {
            self.due.look_soon(now);
        }
        let is_done = (self.feed.pass_is_empty() || !reads) && self.due.pass_is_empty();
        is_done && self.drains_without_aside(now)
    }
}

/// The longest the loop sleeps: a wedged loop has to be told from an idle one.
const TICK: Duration = Duration::from_millis(200);
/// After the grace: time to write down what the attempts that were in time came to.
const LAST_WRITES: Duration = Duration::from_secs(2);
