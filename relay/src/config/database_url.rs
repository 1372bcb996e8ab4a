//! What can be said about a database url without connecting.
//!
//! Only the shape: which database it names, whether a password is in it, how to show it to people, what no driver could
//! make of it, and which of its parameters are ours. The drivers parse the rest, and they know better.

use std::collections::BTreeMap;

use outbox::Database;
use percent_encoding::percent_decode_str;

/// Which database the url names, or `None` when it names none we know.
pub fn database(url: &str) -> Option<Database> {
    let (scheme, _) = url.split_once(':')?;
    match scheme {
        "postgres" | "postgresql" => Some(Database::Postgres),
        "mysql" | "mariadb" => Some(Database::Mysql),
        "sqlite" => Some(Database::Sqlite),
        _ => None,
    }
}

/// The file a `sqlite:` url names.
pub fn sqlite_path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    (!path.is_empty()).then_some(path)
}

/// True when a password stands in the url, before the host or among the parameters.
pub fn has_password(url: &str) -> bool {
    if database(url) == Some(Database::Sqlite) {
        return false;
    }
    let in_front =
        userinfo(url).and_then(|info| info.split_once(':')).is_some_and(|(_, password)| !password.is_empty());
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    in_front || parameters.split('&').any(|parameter| parameter.starts_with("password="))
}

/// True when somebody is named in the url, before the host.
pub(crate) fn has_user(url: &str) -> bool {
    database(url) != Some(Database::Sqlite) && userinfo(url).is_some()
}

/// The url as people may see it: no user, no password, no parameters.
pub fn target(url: &str) -> String {
    if database(url) == Some(Database::Sqlite) {
        return url.to_owned();
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return "(not a url)".to_owned();
    };
    let rest = userinfo(url).map_or(rest, |info| &rest[info.len() + 1..]);
    let rest = rest.split_once(['?', '#']).map_or(rest, |(rest, _)| rest);
    format!("{scheme}://{rest}")
}

/// Why a connection cannot be made as the url asks, and what to write instead; `None` leaves it to the driver.
///
/// Neither text repeats anything of the url.
pub fn unsuitable(url: &str) -> Option<(&'static str, &'static str)> {
    let database = database(url)?;
    if database == Database::Sqlite {
        return None;
    }
    if is_unescaped(url.split_once("://")?.1) {
        return Some((
            "the database url can be read in more than one way: its password holds an `@`, `/`, `?` or `#`",
            "write `@` in a password as `%40`, `/` as `%2F`, `?` as `%3F` and `#` as `%23`",
        ));
    }
    None
}

/// The url without the parameters of these names, and what they were, unescaped. Of two of one name the last counts, so
/// that `refuse_contradicted` has to be asked before.
pub(crate) fn take_parameters(url: &str, names: &[&str]) -> (String, BTreeMap<String, String>) {
    take_parameters_by(url, |name| names.contains(&name).then(|| name.to_owned()))
}

/// The same, where `known` says which name a parameter has for us, if any.
pub(crate) fn take_parameters_by(
    url: &str,
    known: impl Fn(&str) -> Option<String>,
) -> (String, BTreeMap<String, String>) {
    let Some((place, parameters)) = url.split_once('?') else { return (url.to_owned(), BTreeMap::new()) };
    let (mut taken, mut left) = (BTreeMap::new(), Vec::new());
    for parameter in parameters.split('&') {
        let (name, value) = unescaped(parameter);
        match known(&name) {
            Some(name) => drop(taken.insert(name, value)),
            None => left.push(parameter),
        }
    }
    let url = if left.is_empty() { place.to_owned() } else { format!("{place}?{}", left.join("&")) };
    (url, taken)
}

/// What is wrong with an address, and what to write instead.
pub(crate) type Problem = (String, String);

/// Refuses a parameter that [`contradicted`] finds.
pub(crate) fn refuse_contradicted(url: &str, known: impl Fn(&str) -> Option<String>) -> Result<(), Problem> {
    let Some(name) = contradicted(url, known) else { return Ok(()) };
    let problem = format!("the database url has `{name}` twice, with different values");
    Err((problem, "leave the one that is meant".to_owned()))
}

/// Takes the files of a client certificate and its key from what the url says: both or none.
pub(crate) fn take_identity(
    parameters: &mut BTreeMap<String, String>,
    [certificate, key]: [&str; 2],
) -> Result<Option<(String, String)>, Problem> {
    match (parameters.remove(certificate), parameters.remove(key)) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => {
            let problem = format!("the database url names only one of `{certificate}` and `{key}`");
            Err((problem, "name the client certificate and its private key, both or none".to_owned()))
        }
    }
}

/// The first parameter that `known` has a name for and that stands in the url with two different values.
fn contradicted(url: &str, known: impl Fn(&str) -> Option<String>) -> Option<String> {
    let (_, parameters) = url.split_once('?')?;
    let mut seen = BTreeMap::new();
    for (name, value) in parameters.split('&').map(unescaped) {
        let Some(name) = known(&name) else { continue };
        match seen.get(&name) {
            Some(earlier) if *earlier != value => return Some(name),
            Some(_) => {}
            None => drop(seen.insert(name, value)),
        }
    }
    None
}

fn unescaped(parameter: &str) -> (String, String) {
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    (plain(name), plain(value))
}

/// What stands between `://` and the last `@` before the parameters. The last one, because people forget to escape an
/// `@` in a password, and half a password must not be shown either.
fn userinfo(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let before = match has_split_password(rest) {
        true => rest,
        false => rest.split_once('?').map_or(rest, |(rest, _)| rest),
    };
    before.rfind('@').map(|at| &rest[..at])
}

/// True when a user or a password holds a character that ends what it stands in.
fn is_unescaped(rest: &str) -> bool {
    let before = rest.split_once('?').map_or(rest, |(before, _)| before);
    let (authority, path) = before.split_at(before.find(['/', '#']).unwrap_or(before.len()));
    authority.matches('@').count() > 1 || path.contains('@') || has_split_password(rest)
}

/// True when the `?` stands in a password rather than before the parameters: no host is in front of it, and no port.
fn has_split_password(rest: &str) -> bool {
    let Some((before, after)) = rest.split_once('?') else { return false };
    let Some((in_front, _)) = after.split_once('@') else { return false };
    let authority = before.split(['/', '#']).next().unwrap_or_default();
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let has_port = authority.rsplit_once([':', ']']).is_none_or(|(_, port)| is_port(port));
    !authority.contains('@') && (!has_port || !in_front.contains('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_password_is_shown() {
        for (url, shown, password) in [
            ("postgres://shop:s3cret@db.internal:5432/shop", "postgres://db.internal:5432/shop", true),
            ("postgres://shop:s3c@ret/x@db.internal/shop", "postgres://db.internal/shop", true),
            ("postgres://shop@db.internal/shop", "postgres://db.internal/shop", false),
            ("postgres://db.internal/shop?user=a&password=b", "postgres://db.internal/shop", true),
            ("mysql://root:@127.0.0.1/shop", "mysql://127.0.0.1/shop", false),
            ("postgres://shop:s3c@ret@db.internal/shop", "postgres://db.internal/shop", true),
            ("postgres://shop:s3c?ret@db.internal/shop", "postgres://db.internal/shop", true),
            ("postgres://shop:s3c?r=t@db.internal/shop?a=b", "postgres://db.internal/shop", true),
            ("mysql://shop:12?ret@db.internal/shop", "mysql://db.internal/shop", true),
            ("mysql://shop:s3c#r?t@db.internal/shop", "mysql://db.internal/shop", true),
            ("postgres://db.internal:5432/shop?user=a@b&password=b", "postgres://db.internal:5432/shop", true),
            ("sqlite:shop.db", "sqlite:shop.db", false),
            ("s3cret", "(not a url)", false),
        ] {
            assert_eq!(target(url), shown);
            assert_eq!(has_password(url), password, "{url}");
        }
    }

    #[test]
    fn a_url_that_can_be_read_in_two_ways_is_refused_without_repeating_it() {
        for url in [
            "postgres://u:SEKRET@PW@h/x",
            "mysql://u:SEKRET@PW@h/x",
            "postgres://u:SEK/PW@h/x",
            "mysql://u:12/PW@h/x",
            "postgres://u:SEK?PW@h/x",
            "mysql://u:SEK#PW@h/x",
        ] {
            let (problem, help) = unsuitable(url).unwrap_or_else(|| panic!("{url}"));
            assert!(help.contains("`%40`"), "{help}");
            assert!(!problem.contains("PW") && !help.contains("PW"));
        }
        for url in [
            "postgres://u:SEKRET%40PW@h:5432/x",
            "postgres://u@h/x?application_name=me@here",
            "postgres://h/x?user=me@here",
            "postgres://[::1]:5432/x?user=me@here",
            "postgres://%2Fvar%2Frun/x?user=me@here",
            "mysql://h/x",
            "sqlite:me@here/shop@db",
        ] {
            assert_eq!(unsuitable(url), None, "{url}");
        }
    }

    #[test]
    fn parameters_are_taken_out_of_the_url_and_unescaped() {
        let take = |url: &str| {
            let (url, taken) = take_parameters(url, &["sslmode", "sslcert"]);
            (url, taken.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
        };
        for (url, left, taken) in [
            ("postgres://u:p@h/x", "postgres://u:p@h/x", ""),
            ("postgres://u:p@h/x?a=%20&sslmode=require", "postgres://u:p@h/x?a=%20", "sslmode=require"),
            ("postgres://h/x?sslcert=%2Fa+b%20c&sslmode=", "postgres://h/x", "sslcert=/a+b c sslmode="),
            ("postgres://h/x?sslmode=a&sslmod=c&ssl%6Dode=b", "postgres://h/x?sslmod=c", "sslmode=b"),
        ] {
            assert_eq!(take(url), (left.to_owned(), taken.to_owned()), "{url}");
        }
    }

    #[test]
    fn a_parameter_contradicts_itself_by_what_it_says_and_not_by_how_it_is_written() {
        let known = |name: &str| name.starts_with("ssl").then(|| name.replace('_', "-"));
        for (url, expected) in [
            ("mysql://h/x", None),
            ("mysql://h/x?ssl-ca=/a&a=1&a=2", None),
            ("mysql://h/x?ssl-ca=/a&ssl_ca=%2Fa", None),
            ("mysql://h/x?ssl-ca=/a&ssl_ca=/b", Some("ssl-ca")),
            ("mysql://h/x?ssl-ca=/a&ssl-key=/k&ssl%2Dca=/a&ssl-ca", Some("ssl-ca")),
        ] {
            assert_eq!(contradicted(url, known).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn schemes_name_the_database() {
        for (url, expected) in [
            ("postgres://x", Some(Database::Postgres)),
            ("postgresql://x", Some(Database::Postgres)),
            ("mysql://x", Some(Database::Mysql)),
            ("sqlite:a.db", Some(Database::Sqlite)),
            ("redis://x", None),
            ("shop.db", None),
        ] {
            assert_eq!(database(url), expected, "{url}");
        }
        assert_eq!(sqlite_path("sqlite:a.db"), Some("a.db"));
        assert_eq!(sqlite_path("sqlite:///tmp/a.db"), Some("/tmp/a.db"));
        assert_eq!(sqlite_path("sqlite:/tmp/a.db"), Some("/tmp/a.db"));
        assert_eq!(sqlite_path("sqlite:"), None);
    }
}
