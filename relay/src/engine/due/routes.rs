//! Gives rows without a destination their routes: those that are due, and those the search for routes finds.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{DueAnswer, Found, HeldRow};
use crate::engine::feed::UNROUTED_PAUSE;
use crate::engine::search::Question;
use crate::engine::{Answer, Engine};
use crate::message::{Key, PartitionSet, WaitingDelivery};
use crate::outcome::{expired_unrouted, waits};
use crate::store::{DueIn, Remains, RoutedUnit, State, Store, StoreError, UnroutedRow, WaitingChange, WaitingOutcome};

/// What the search was told.
pub(in crate::engine) enum Told {
    Topics(Result<Vec<(u8, String)>, StoreError>),
    Rows(Result<Vec<UnroutedRow>, StoreError>),
}

/// Keys of which a message waits without a destination, as they were when waiting rows of theirs were read.
///
/// While the search goes on in a partition, it is these whose rows must not start, and no others.
#[derive(Debug, Default)]
pub(in crate::engine) struct Doubts {
    partitions: PartitionSet,
    keys: HashSet<Key>,
}

impl Doubts {
    /// Asks for those among the rows' keys that are in these partitions.
    pub(super) async fn ask(
        store: &dyn Store,
        partitions: PartitionSet,
        rows: &[WaitingDelivery],
    ) -> Result<Doubts, StoreError> {
        let doubtful = rows.iter().filter(|row| row.in_order && partitions.contains(row.message.partition_no));
        let keys: HashSet<Key> = doubtful.filter_map(|row| row.message.ordering_key.clone()).collect();
        if keys.is_empty() {
            return Ok(Doubts { partitions, keys });
        }
        let named: Vec<(String, Key)> = keys.into_iter().map(|key| (String::new(), key)).collect();
        let parked = store.key_parked(&named).await?;
        let keys = named.into_iter().zip(parked).filter(|(_, parked)| *parked).map(|((_, key), _)| key).collect();
        Ok(Doubts { partitions, keys })
    }

    fn exclude(&self, partition_no: u8, key: &Key) -> bool {
        self.partitions.contains(partition_no) && !self.keys.contains(key)
    }
}

impl Engine {
    /// Asks what the search for routes wants to know.
    pub(super) fn start_search(&mut self, question: Question) {
        let number = self.due.begin_look();
        let (store, answers) = (self.store.clone(), self.answers.clone());
        tokio::spawn(async move {
            let told = match question {
                Question::Topics { after, limit } => Told::Topics(store.unrouted_topics(&after, limit).await),
                Question::Rows { wanted, limit } => Told::Rows(store.unrouted_rows(&wanted, limit).await),
            };
            let _ = answers.send(Answer::Due(DueAnswer { number, found: Found::Unrouted(told) }));
        });
    }

    /// The search was told something; false when it was an error.
    pub(super) fn search_told(&mut self, told: Told, now: Instant) -> bool {
        self.due.search.answered(now);
        match told {
            Told::Topics(result) => {
                let Some(topics) = self.search_result("unrouted_topics", result, now) else { return false };
                let routes = self.routes.clone();
                self.due.search.topics_found(topics, |topic| !routes.route(topic).is_empty());
            }
            Told::Rows(result) => {
                let Some(rows) = self.search_result("unrouted_rows", result, now) else { return false };
                for row in self.due.search.rows_read(rows) {
                    self.row_searched(row);
                }
            }
        }
        true
    }

    fn search_result<T>(&mut self, operation: &'static str, result: Result<T, StoreError>, now: Instant) -> Option<T> {
        match result {
            Ok(value) => {
                self.outages.recovered(operation);
                Some(value)
            }
            Err(error) => {
                let pause = self.outages.failed(operation, &error);
                self.due.search.unanswered(now + pause);
                None
            }
        }
    }

    fn row_searched(&mut self, row: UnroutedRow) {
        let is_ours = self.kept_since_look().contains(row.partition_no);
        if !is_ours || self.routes.route(&row.topic).is_empty() || self.due.search.is_found(row.id) {
            return;
        }
        if self.due.holds(row.id) {
            self.due.search.found_busy(&row);
        } else {
            self.route_row(row);
        }
    }

    /// A row without destination is due, or has a route: it becomes one row for each destination.
    pub(super) fn route_row(&mut self, row: UnroutedRow) {
        let units: Vec<RoutedUnit> = self
            .routes
            .route(&row.topic)
            .iter()
            .map(|&destination| {
                let state = if self.lane_of(destination).is_some() { State::Overflow } else { State::Unserved };
                RoutedUnit {
                    destination: self.routing.destinations[destination].spec.name.clone(),
                    remains: waits(state, row.in_order && self.keeps_order(destination), DueIn::Pause(Duration::ZERO)),
                }
            })
            .collect();
        let change = if units.is_empty() {
            let Remains::Waits(waits) = waits(State::Unrouted, row.in_order, DueIn::Pause(UNROUTED_PAUSE)) else {
                return;
            };
            WaitingChange::Waits(waits)
        } else {
            self.due.search.found(&row);
            WaitingChange::Routed(units)
        };
        self.due.held.insert(row.id, HeldRow { partition_no: row.partition_no, lane: None, settled: false });
        self.settling.push_row(WaitingOutcome {
            id: row.id,
            message_id: row.message_id,
            partition_no: row.partition_no,
            destination: String::new(),
            ordering_key: row.ordering_key,
            attempts_read: row.attempts,
            change,
        });
    }

    /// A row that no destination wants any more in time is given up.
    pub(super) fn expire_row(&mut self, row: WaitingDelivery) {
        let message = row.message;
        self.tell_expired(&message);
        self.due.held.insert(row.id, HeldRow { partition_no: message.partition_no, lane: None, settled: false });
        self.settling.push_row(WaitingOutcome {
            id: row.id,
            message_id: message.id,
            partition_no: message.partition_no,
            destination: String::new(),
            ordering_key: message.ordering_key,
            attempts_read: row.attempts,
            change: WaitingChange::Dies(expired_unrouted()),
        });
    }

    /// True while an earlier message of the key may wait without a destination although there is a route for it now.
    pub(in crate::engine) fn may_find_route(&self, partition_no: u8, key: &Key) -> bool {
        self.due.search.has_found(key) || self.due.search.open().contains(partition_no)
    }

    /// The same for a row that was read together with these doubts.
    pub(super) fn may_pass_unrouted(&self, row: &WaitingDelivery, doubts: Option<&Doubts>) -> bool {
        let Some(key) = &row.message.ordering_key else { return false };
        let partition_no = row.message.partition_no;
        let search = &self.due.search;
        let is_excluded =
            doubts.is_some_and(|doubts| doubts.exclude(partition_no, key)) && !search.opened().contains(partition_no);
        search.open().contains(partition_no) && !is_excluded
            || search.has_found(key)
            || self.feed.unrouted.may_have_route(key, self.routes.version())
    }
}
