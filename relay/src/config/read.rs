//! Reads a TOML tree key by key and remembers where everything stood.
//!
//! The tree keeps the byte range of every key and value, so each problem can point at `file:line:column`; serde would
//! stop at the first one. Every scalar first asks the environment for `RELAY__SECTION__KEY`. What nobody asked for by
//! the time a section is finished is an unknown key.
//!
//! Nothing here knows which sections and keys exist.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::accepts::Accepts;
use super::problem::{Problem, suggestion};
use super::secret::Secret;

/// The environment variables that override scalars begin so.
pub(crate) const OVERRIDE: &str = "RELAY__";

/// What is shared by all sections of one file.
pub(crate) struct Reader<'a> {
    file: String,
    folder: PathBuf,
    text: &'a str,
    environment: &'a BTreeMap<String, String>,
    used: RefCell<BTreeSet<String>>,
    known: RefCell<BTreeMap<(String, String), Kind>>,
    shapes: RefCell<BTreeMap<(String, String), Value>>,
    sections: RefCell<BTreeSet<String>>,
    problems: RefCell<Vec<(usize, Problem)>>,
}

/// One table of the file, present or not.
pub(crate) struct Section<'r, 'a> {
    reader: &'r Reader<'a>,
    name: String,
    table: Option<&'r DeTable<'a>>,
    header: Option<Range<usize>>,
    known: RefCell<Vec<String>>,
}

/// What a key that somebody asked for may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One value, which the environment overrides.
    Scalar,
    /// A list, from the file only.
    List,
}

/// A value as it was given, before it is understood.
pub(crate) struct Given<'r, 'a> {
    value: Raw<'r, 'a>,
    place: Place,
}

enum Raw<'r, 'a> {
    File(&'r DeValue<'a>),
    Environment(String),
}

/// Where a value was given.
#[derive(Clone)]
pub(crate) enum Place {
    File(Range<usize>),
    Environment(String),
    Nowhere,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(path: &Path, text: &'a str, environment: &'a BTreeMap<String, String>) -> Reader<'a> {
        Reader {
            file: path.display().to_string(),
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            text,
            environment,
            used: RefCell::default(),
            known: RefCell::default(),
            shapes: RefCell::default(),
            sections: RefCell::default(),
            problems: RefCell::default(),
        }
    }

    /// Notes that something is wrong.
    pub(crate) fn problem(&self, section: &str, place: &Place, message: String, help: Option<String>) {
        let (order, place) = match place {
            Place::File(range) => (range.start, self.line_column(range.start)),
            Place::Environment(name) => (usize::MAX, format!("environment variable {name}")),
            Place::Nowhere => (usize::MAX, String::new()),
        };
        self.problems.borrow_mut().push((order, Problem { section: section.to_owned(), place, message, help }));
    }

    /// Ends the reading: every override that matched nothing is a problem too. The problems come in the file's order.
    pub(crate) fn finish(self) -> Vec<Problem> {
        for name in self.environment.keys().filter(|name| name.starts_with(OVERRIDE)) {
            if self.used.borrow().contains(name) {
                continue;
            }
            let offered: Vec<String> = self.overrides();
            let meant = suggestion(name, offered.iter().map(String::as_str));
            let message = match meant {
                Some(meant) => {
                    format!("nothing by that name can be overridden - did you mean `{meant}`?")
                }
                None => "nothing by that name can be overridden".to_owned(),
            };
            let section = name[OVERRIDE.len()..].split("__").next().unwrap_or("").to_lowercase();
            self.problem(&section, &Place::Environment(name.clone()), message, None);
        }
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(order, _)| *order);
        problems.into_iter().map(|(_, problem)| problem).collect()
    }

    /// Every key that was asked for, as (section, key). Complete once all sections were read.
    pub(crate) fn known(&self) -> BTreeMap<(String, String), Kind> {
        self.known.borrow().clone()
    }

    /// What every key that was asked for accepts, as JSON Schema.
    pub(crate) fn shapes(&self) -> BTreeMap<(String, String), Value> {
        self.shapes.borrow().clone()
    }

    /// Every section that was asked for.
    pub(crate) fn sections(&self) -> BTreeSet<String> {
        self.sections.borrow().clone()
    }

    /// Every environment variable that would be listened to.
    fn overrides(&self) -> Vec<String> {
        let known = self.known().into_iter();
        known
            .filter(|(_, kind)| *kind == Kind::Scalar)
            .map(|((section, key), _)| override_name(&section, &key))
            .collect()
    }

    fn knows(&self, section: &str, key: &str, kind: Kind) {
        let place = (section.to_owned(), key.to_owned());
        // What may be both is a scalar: the environment is listened to.
        let mut known = self.known.borrow_mut();
        if known.get(&place) != Some(&Kind::Scalar) {
            known.insert(place, kind);
        }
    }

    /// The file, the line and the column, both counted from 1, the column in characters.
    fn line_column(&self, at: usize) -> String {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        format!("{}:{line}:{column}", self.file)
    }
}

impl<'r, 'a> Section<'r, 'a> {
    /// The file itself.
    pub(crate) fn root(reader: &'r Reader<'a>, table: &'r DeTable<'a>) -> Section<'r, 'a> {
        Section { reader, name: String::new(), table: Some(table), header: None, known: RefCell::default() }
    }

    /// The table `key`; empty when it is missing, or when something else stands there (which is a problem).
    pub(crate) fn section(&self, key: &str) -> Section<'r, 'a> {
        self.known.borrow_mut().push(key.to_owned());
        let name = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        self.reader.sections.borrow_mut().insert(name.clone());
        let mut section = Section { reader: self.reader, name, table: None, header: None, known: RefCell::default() };
        if let Some((range, value)) = self.find(key) {
            section.header = Some(range.clone());
            match value {
                DeValue::Table(table) => section.table = Some(table),
                other => {
                    let message = format!("[{}] must be a table, not {}", section.name, kind(other));
                    self.reader.problem(&section.name, &Place::File(range), message, None);
                }
            }
        }
        section
    }

    /// The name as it stands between brackets.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// True when the table stands in the file, with or without keys.
    pub(crate) fn is_written(&self) -> bool {
        self.table.is_some()
    }

    /// The keys that stand in the file.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.table.map(|table| table.keys().map(|key| key.get_ref().to_string()).collect()).unwrap_or_default()
    }

    /// True when the file or the environment has something under `key`, right or wrong.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.find(key).is_some() || self.reader.environment.contains_key(&self.override_name(key))
    }

    /// Where `key` stands, or else the section.
    pub(crate) fn place(&self, key: &str) -> Place {
        let environment = self.override_name(key);
        if self.reader.environment.contains_key(&environment) {
            return Place::Environment(environment);
        }
        let key_range = self.table.and_then(|table| table.keys().find(|k| k.get_ref() == key)).map(toml::Spanned::span);
        key_range.or_else(|| self.header.clone()).map_or(Place::Nowhere, Place::File)
    }

    /// Notes that something is wrong with `key` of this section.
    pub(crate) fn problem(&self, key: &str, message: String, help: Option<&str>) {
        self.reader.problem(&self.name, &self.place(key), message, help.map(str::to_owned));
    }

    /// The scalar `key`, from the environment or from the file.
    pub(crate) fn scalar(&self, key: &str) -> Option<Given<'r, 'a>> {
        let name = self.override_name(key);
        self.reader.knows(&self.name, key, Kind::Scalar);
        if let Some(text) = self.reader.environment.get(&name) {
            self.known.borrow_mut().push(key.to_owned());
            self.reader.used.borrow_mut().insert(name.clone());
            return Some(Given { value: Raw::Environment(text.clone()), place: Place::Environment(name) });
        }
        self.value(key)
    }

    /// The value `key` from the file only: lists and tables cannot be overridden.
    pub(crate) fn value(&self, key: &str) -> Option<Given<'r, 'a>> {
        self.known.borrow_mut().push(key.to_owned());
        self.reader.knows(&self.name, key, Kind::List);
        let (range, value) = self.find(key)?;
        Some(Given { value: Raw::File(value), place: Place::File(range) })
    }

    /// Sets `into` from the scalar `key` if it is there and accepted.
    pub(crate) fn set<T>(&self, key: &str, into: &mut T, accepts: Accepts<'_, T>) {
        if let Some(given) = self.scalar(key) {
            self.accept(key, &given, into, accepts);
        } else {
            self.shape(key, described(&accepts));
        }
    }

    /// Notes what `key` accepts, as JSON Schema.
    pub(crate) fn shape(&self, key: &str, shape: Value) {
        self.reader.shapes.borrow_mut().insert((self.name.clone(), key.to_owned()), shape);
    }

    /// Like [`Section::set`], for a value that was fetched already.
    pub(crate) fn accept<T>(&self, key: &str, given: &Given<'r, 'a>, into: &mut T, accepts: Accepts<'_, T>) {
        self.shape(key, described(&accepts));
        match (accepts.understand)(given) {
            Some(value) => *into = value,
            None => {
                let must = accepts.must;
                let message = format!("`{key}` in [{}] must be {must}, not {}", self.name, given.show());
                self.reader.problem(&self.name, &given.place, message, None);
            }
        }
    }

    /// A text, or a reference to a secret: `{ env = "NAME" }`, `{ file = "path" }`.
    pub(crate) fn secret(&self, key: &str) -> Option<(Secret, Origin)> {
        let given = self.scalar(key)?;
        let fail = |message: String, help: &str| {
            self.reader.problem(&self.name, &given.place, message, Some(help.to_owned()));
            None
        };
        let here = format!("`{key}` in [{}]", self.name);
        let table = match &given.value {
            Raw::Environment(text) => return Some((Secret::new(text.clone()), Origin::Reference)),
            Raw::File(DeValue::String(text)) => {
                return Some((Secret::new(text.as_ref()), Origin::Literal));
            }
            Raw::File(DeValue::Table(table)) => table,
            Raw::File(other) => {
                return fail(format!("{here} must be a text or a reference, not {}", kind(other)), REFERENCE);
            }
        };
        Some((self.referenced(&here, table, &given.place)?, Origin::Reference))
    }

    /// A list of references to secrets, each of which `understand` accepts or says what is wrong with it. From the file
    /// only. What is wrong is noted, and left out of the list.
    pub(crate) fn secrets<T>(
        &self,
        key: &str,
        must: &str,
        understand: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let given = self.value(key)?;
        let here = format!("`{key}` in [{}]", self.name);
        let wrong = |place: &Place, message: String| {
            self.reader.problem(&self.name, place, message, Some(REFERENCE.to_owned()));
        };
        let Raw::File(DeValue::Array(list)) = &given.value else {
            wrong(&given.place, format!("{here} must be {must}"));
            return None;
        };
        if list.is_empty() {
            wrong(&given.place, format!("{here} must be {must}"));
        }
        let mut secrets = Vec::new();
        for each in list {
            let place = Place::File(each.span());
            let DeValue::Table(table) = each.get_ref() else {
                wrong(&place, format!("{here}: a secret must not stand in the file"));
                continue;
            };
            let Some(secret) = self.referenced(&here, table, &place) else { continue };
            match understand(secret.expose()) {
                Ok(secret) => secrets.push(secret),
                Err(problem) => self.reader.problem(&self.name, &place, format!("{here}: {problem}"), None),
            }
        }
        Some(secrets)
    }

    fn referenced(&self, here: &str, table: &DeTable<'_>, place: &Place) -> Option<Secret> {
        let fail = |message: String, help: &str| {
            self.reader.problem(&self.name, place, message, Some(help.to_owned()));
            None
        };
        let mut entries = table.iter().map(|(key, value)| (key.get_ref().as_ref(), value.get_ref()));
        match (entries.next(), entries.next()) {
            (Some(("env", DeValue::String(name))), None) => match self.reader.environment.get(name.as_ref()) {
                Some(text) if !text.is_empty() => Some(Secret::new(text.clone())),
                _ => fail(
                    format!("{here}: the environment variable {name} is not set"),
                    "set it where the relay is started",
                ),
            },
            (Some(("file", DeValue::String(path))), None) => {
                let path = self.reader.folder.join(path.as_ref());
                match std::fs::read_to_string(&path) {
                    // Editors end a file with a line break; no secret ends with one.
                    Ok(text) => Some(Secret::new(text.trim_end_matches(['\r', '\n']))),
                    Err(error) => fail(
                        format!("{here}: the file {} cannot be read: {error}", path.display()),
                        "a relative path starts at the folder of the configuration file",
                    ),
                }
            }
            _ => fail(format!("{here} is not a reference to a secret"), REFERENCE),
        }
    }

    /// Ends the section: what nobody asked for is unknown.
    pub(crate) fn finish(self) {
        let known = self.known.borrow();
        for key in self.table.into_iter().flat_map(DeTable::keys) {
            let written = key.get_ref().as_ref();
            if known.iter().any(|known| known == written) {
                continue;
            }
            let meant = suggestion(written, known.iter().map(String::as_str));
            let message = match (self.name.is_empty(), meant) {
                (true, Some(meant)) => {
                    format!("unknown section [{written}] - did you mean [{meant}]?")
                }
                (true, None) => format!("unknown section [{written}]"),
                (false, Some(meant)) => {
                    format!("unknown key `{written}` in [{}] - did you mean `{meant}`?", self.name)
                }
                (false, None) => format!("unknown key `{written}` in [{}]", self.name),
            };
            self.reader.problem(&self.name, &Place::File(key.span()), message, None);
        }
    }

    fn find(&self, key: &str) -> Option<(Range<usize>, &'r DeValue<'a>)> {
        let (_, value) = self.table?.iter().find(|(k, _)| k.get_ref() == key)?;
        Some((value.span(), value.get_ref()))
    }

    fn override_name(&self, key: &str) -> String {
        override_name(&self.name, key)
    }
}

/// The environment variable that overrides `key` of `section`.
pub(crate) fn override_name(section: &str, key: &str) -> String {
    let mut name = OVERRIDE.to_owned();
    for part in section.split('.').filter(|part| !part.is_empty()) {
        name.push_str(part);
        name.push_str("__");
    }
    name.push_str(key);
    name.to_uppercase().replace('-', "_")
}

/// How a secret was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In the file itself.
    Literal,
    /// Somewhere else.
    Reference,
}

const REFERENCE: &str = "write { env = \"NAME\" } or { file = \"path\" }";

impl Given<'_, '_> {
    /// The text, when it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Raw::Environment(text) => Some(text),
            Raw::File(DeValue::String(text)) => Some(text.as_ref()),
            Raw::File(_) => None,
        }
    }

    /// The whole number, when it is one. The environment has only texts, so there a text of digits is one.
    pub(crate) fn integer(&self) -> Option<u64> {
        match &self.value {
            Raw::Environment(text) => text.parse().ok(),
            Raw::File(DeValue::Integer(integer)) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            Raw::File(_) => None,
        }
    }

    /// True or false, when it is one of them. In the environment they are texts.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match &self.value {
            Raw::Environment(text) => text.parse().ok(),
            Raw::File(DeValue::Boolean(value)) => Some(*value),
            Raw::File(_) => None,
        }
    }

    /// The whole numbers, when it is a list of such.
    pub(crate) fn integers(&self) -> Option<Vec<u64>> {
        let Raw::File(DeValue::Array(array)) = &self.value else {
            return None;
        };
        array
            .iter()
            .map(|each| match each.get_ref() {
                DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
                _ => None,
            })
            .collect()
    }

    /// The texts, when it is a list of texts.
    pub(crate) fn texts(&self) -> Option<Vec<&str>> {
        let Raw::File(DeValue::Array(array)) = &self.value else {
            return None;
        };
        array
            .iter()
            .map(|each| match each.get_ref() {
                DeValue::String(text) => Some(text.as_ref()),
                _ => None,
            })
            .collect()
    }

    /// True when it is a table.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.value, Raw::File(DeValue::Table(_)))
    }

    /// The value as it is repeated in a message.
    fn show(&self) -> String {
        match &self.value {
            Raw::Environment(text) => format!("`{text}`"),
            Raw::File(DeValue::String(text)) => format!("`{text}`"),
            Raw::File(DeValue::Integer(integer)) => format!("`{integer}`"),
            Raw::File(DeValue::Boolean(value)) => format!("`{value}`"),
            Raw::File(other) => kind(other).to_owned(),
        }
    }
}

/// The shape, and in words what it cannot say.
fn described<T>(accepts: &Accepts<'_, T>) -> Value {
    let mut shape = accepts.schema.clone();
    shape["description"] = accepts.must.as_str().into();
    shape
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
