//! What every store promises, written once and run on each database.
//!
//! The documentation of `relay::store::Store` is the specification; each sentence there has a test here. Rows are
//! inserted by plain SQL, as a producer in any language would, and looked at the same way: nothing is asked of the
//! store under test but what the test is about. A difference between databases is visible in the kinds a test names.

mod destinations;
mod feed;
pub(crate) mod fixture;
mod levels;
mod mariadb;
mod membership;
mod order;
mod plans;
mod settle;
mod status;
mod suspects;
mod values;
mod waiting;
