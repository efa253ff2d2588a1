//! TOML files in, one merged tree with file and line of every value out.
//!
//! The main file is read first, then `conf.d/*.toml` beside it in name order; a later file wins key by key, and an
//! array (also `[[publish]]`) is replaced as a whole. Nothing here knows which keys exist. Every syntax error of every
//! file is reported, not only the first.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// Largest file read, in bytes: the shipped file is 20 KB; anything near this is not a configuration.
const FILE_MAX: u64 = 1024 * 1024;

/// Most files in `conf.d`: far more than anyone wants to look through.
const FILES_MAX: usize = 256;

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    pub file: Arc<Path>,
    /// From 1; `None` speaks of the file as a whole.
    pub line: Option<u32>,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    pub value: Value,
    pub at: At,
}

/// TOML's values, as far as a configuration needs them.
#[derive(Clone, Debug)]
pub enum Value {
    Text(String),
    /// `None` when it does not even fit 64 bits.
    Integer(Option<i64>),
    Bool(bool),
    /// A float or a date, which no key takes; the word says which.
    Other(&'static str),
    List(Vec<Node>),
    Table(Table),
}

/// Keys with the place of the key and the value.
pub type Table = BTreeMap<String, (At, Node)>;

impl Value {
    /// What a message calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "text",
            Value::Integer(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Other(word) => word,
            Value::List(_) => "a list",
            Value::Table(_) => "a section",
        }
    }
}

/// Reads the main file and everything beside it: the tree of what could be read, the place of the whole, and what is wrong
/// with the rest. A file with a mistake in it adds nothing to the tree.
pub fn read(path: &Path) -> (Table, At, Vec<ConfigError>) {
    let whole = At { file: Arc::from(path), line: None };
    let mut errors = Vec::new();
    let mut tree = Table::new();
    let mut files = vec![path.to_path_buf()];
    match beside(path) {
        Ok(more) => files.extend(more),
        Err(error) => errors.push(error),
    }
    for file in files {
        match parse(&file, file == path) {
            Ok(table) => merge(&mut tree, table),
            Err(more) => errors.extend(more),
        }
    }
    (tree, whole, errors)
}

/// Parses one text as if it stood in `file`.
pub fn parse_text(text: &str, file: Arc<Path>) -> Result<Table, Vec<ConfigError>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Lines { text, file }.table(table.get_ref()));
    }
    let lines = Lines { text, file };
    Err(errors
        .iter()
        .map(|error| {
            let at = lines.at(error.span().map_or(0, |span| span.start));
            ConfigError::at(&at, "", format!("not valid TOML: {}", error.message().replace('\n', "; ")))
        })
        .collect())
}

fn parse(file: &Path, main: bool) -> Result<Table, Vec<ConfigError>> {
    let at = At { file: Arc::from(file), line: None };
    let fail = |message: String| vec![ConfigError::at(&at, "", message)];
    let text = match fs::metadata(file)
        .and_then(|meta| if meta.len() > FILE_MAX { Err(ErrorKind::FileTooLarge.into()) } else { fs::read(file) })
    {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| fail("is not UTF-8 text".into()))?,
        Err(error) if error.kind() == ErrorKind::NotFound && main => {
            return Err(vec![ConfigError::missing_file(file)]);
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(fail("cannot be read: permission denied; run this as root or the user `switchback`".into()));
        }
        Err(error) if error.kind() == ErrorKind::FileTooLarge => {
            return Err(fail(format!("is larger than {FILE_MAX} bytes, which no configuration is")));
        }
        Err(error) => return Err(fail(format!("cannot be read: {error}"))),
    };
    parse_text(&text, Arc::from(file))
}

/// `conf.d/*.toml` beside the main file in name order. Hidden files are left alone, as editors leave them behind.
fn beside(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = path.parent().unwrap_or(Path::new("")).join("conf.d");
    let at = At { file: Arc::from(dir.as_path()), line: None };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError::at(&at, "", format!("cannot be read: {error}"))),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|file| {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("");
            name.ends_with(".toml") && !name.starts_with('.')
        })
        .collect();
    if files.len() > FILES_MAX {
        return Err(ConfigError::at(&at, "", format!("holds more than {FILES_MAX} files")));
    }
    files.sort();
    Ok(files)
}

fn merge(into: &mut Table, from: Table) {
    for (key, (at, node)) in from {
        match (into.get_mut(&key), node) {
            (Some((_, Node { value: Value::Table(old), .. })), Node { value: Value::Table(new), .. }) => {
                merge(old, new);
            }
            (_, node) => {
                into.insert(key, (at, node));
            }
        }
    }
}

/// Turns the parser's byte offsets into lines.
struct Lines<'t> {
    text: &'t str,
    file: Arc<Path>,
}

impl Lines<'_> {
    fn at(&self, offset: usize) -> At {
        let line = self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        At { file: self.file.clone(), line: u32::try_from(line).ok() }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        table
            .iter()
            .map(|(key, value)| (key.get_ref().to_string(), (self.at(key.span().start), self.node(value))))
            .collect()
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let at = self.at(value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Float(_) => Value::Other("a number with a point"),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { value, at }
    }
}
