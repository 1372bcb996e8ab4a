//! The trace a message is created in. Feature `opentelemetry`, and only its API: without an SDK there is no span.
//!
//! The headers `traceparent` and `tracestate` of the W3C are stored with the message, and the relay sends them along. So
//! what a receiver does is found in the same trace as the request that caused it, hours later if need be.
//!
//! Invariants
//! - What the caller set himself is left alone.
//! - A trace never makes a message impossible: what does not fit beside the caller's headers is left out.

use std::collections::BTreeMap;

use crate::limits;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// The context of a span, as headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    parent: String,
    state: String,
}

impl Trace {
    /// That of the span which is current on this thread.
    #[cfg(feature = "opentelemetry")]
    pub(crate) fn current() -> Option<Trace> {
        use opentelemetry::Context;
        use opentelemetry::trace::TraceContextExt;

        Context::map_current(|context| {
            let span = context.span();
            let span = span.span_context();
            span.is_valid().then(|| Trace {
                parent: format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()),
                state: span.trace_state().header(),
            })
        })
    }

    /// None, without the feature.
    #[cfg(not(feature = "opentelemetry"))]
    pub(crate) fn current() -> Option<Trace> {
        None
    }

    /// Adds the headers, unless the caller set one of them.
    pub(crate) fn add_to(self, headers: &mut BTreeMap<String, String>) {
        if headers.contains_key(TRACEPARENT) || headers.contains_key(TRACESTATE) {
            return;
        }
        add(headers, TRACEPARENT, self.parent);
        if !self.state.is_empty() && headers.contains_key(TRACEPARENT) {
            add(headers, TRACESTATE, self.state);
        }
    }
}

/// Adds a header if the message may have it.
fn add(headers: &mut BTreeMap<String, String>, name: &str, value: String) {
    if limits::check_header(name, &value).is_err() {
        return;
    }
    headers.insert(name.to_owned(), value);
    if limits::check_header_total(headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))).is_err() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(own: &[(&str, &str)], state: &str) -> BTreeMap<String, String> {
        let mut headers = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Trace { parent: PARENT.to_owned(), state: state.to_owned() }.add_to(&mut headers);
        headers
    }

    fn names(headers: &BTreeMap<String, String>) -> Vec<&str> {
        headers.keys().map(String::as_str).collect()
    }

    #[test]
    fn what_the_caller_set_is_left_alone() {
        assert_eq!(headers(&[(TRACEPARENT, "mine")], "a=1"), [(TRACEPARENT.into(), "mine".into())].into());
        assert_eq!(headers(&[(TRACESTATE, "mine")], "a=1"), [(TRACESTATE.into(), "mine".into())].into());
    }

    #[test]
    fn a_trace_that_does_not_fit_is_left_out() {
        let (room, full) = ("x".repeat(4000), "x".repeat(4090));
        assert_eq!(names(&headers(&[], "a=1")), [TRACEPARENT, TRACESTATE]);
        assert_eq!(names(&headers(&[], "")), [TRACEPARENT]);
        assert_eq!(names(&headers(&[("a", &room)], &"x".repeat(200))), ["a", TRACEPARENT]);
        assert_eq!(names(&headers(&[("a", &full)], "a=1")), ["a"]);
        assert_eq!(names(&headers(&[], "a=1\r\nb: c")), [TRACEPARENT]);
        let names: Vec<String> = (0..limits::HEADERS_MAX).map(|n| format!("x{n}")).collect();
        let own: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert_eq!(headers(&own, "a=1").len(), own.len());
    }
}
