//! Pages and what is in them.

use std::path::{Path, PathBuf};

/// A page, by its path from the root of the repository.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) path: String,
    pub(super) text: String,
}

/// A block of code.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// `docs/OPERATING.md:17`.
    pub(super) place: String,
    /// What stands behind the fence, word by word.
    pub(super) info: Vec<String>,
    pub(super) text: String,
}

impl Block {
    pub(super) fn language(&self) -> &str {
        self.info.first().map_or("", String::as_str)
    }

    pub(super) fn is_marked(&self, mark: &str) -> bool {
        self.info.iter().skip(1).any(|word| word == mark)
    }
}

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Page {
    pub(super) fn new(path: &str, text: &str) -> Page {
        Page { path: path.to_owned(), text: text.to_owned() }
    }

    /// True for pages whose blocks are tested elsewhere.
    pub(super) fn has_tests_of_its_own(&self) -> bool {
        ["docs/CLI.md", "docs/CONFIGURATION.md"].contains(&self.path.as_str())
    }

    /// The lines with their numbers, those of code apart.
    fn lines(&self) -> (Vec<(usize, &str)>, Vec<Block>) {
        let (mut prose, mut blocks) = (Vec::new(), Vec::new());
        let mut open: Option<Block> = None;
        for (line, number) in self.text.lines().zip(1..) {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(info), None) => {
                    let words = info.split([' ', ',']).filter(|word| !word.is_empty());
                    let place = format!("{}:{number}", self.path);
                    open = Some(Block { place, info: words.map(str::to_owned).collect(), text: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => prose.push((number, line)),
            }
        }
        assert!(open.is_none(), "a block of `{}` is not closed", self.path);
        (prose, blocks)
    }

    pub(super) fn blocks(&self) -> Vec<Block> {
        self.lines().1
    }

    /// What is written, without blocks of code, with numbers of lines.
    pub(super) fn prose(&self) -> Vec<(usize, &str)> {
        self.lines().0
    }

    /// What stands in backticks in the text, with its place.
    pub(super) fn quoted(&self) -> Vec<(String, &str)> {
        let mut quoted = Vec::new();
        for (number, line) in self.prose() {
            // The odd parts are inside. A span does not go over the end of a line on these pages.
            let parts: Vec<&str> = line.split('`').collect();
            assert!(parts.len() % 2 == 1, "{}:{number}: a backtick without its partner", self.path);
            let inside = parts.into_iter().skip(1).step_by(2);
            quoted.extend(inside.map(|inside| (format!("{}:{number}", self.path), inside)));
        }
        quoted
    }
}

/// All of them.
pub(super) fn pages() -> Vec<Page> {
    let mut paths: Vec<String> = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(str::to_owned).into();
    let mut found: Vec<String> = std::fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy()))
        .filter(|path| path.ends_with(".md"))
        .collect();
    found.sort();
    assert!(found.len() >= 2, "{found:?}");
    paths.extend(found);
    paths.iter().map(|path| Page::new(path, &std::fs::read_to_string(root().join(path)).unwrap())).collect()
}

/// The blocks of these pages in a language.
pub(super) fn blocks(pages: &[Page], language: &str) -> Vec<Block> {
    let blocks = pages.iter().filter(|page| !page.has_tests_of_its_own()).flat_map(Page::blocks);
    blocks.filter(|block| block.language() == language).collect()
}

#[test]
fn every_block_is_of_a_kind_that_is_tested() {
    for page in pages().iter().filter(|page| !page.has_tests_of_its_own()) {
        for block in page.blocks() {
            let (language, marks) = block.info.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
            let known: &[&str] = match language {
                "rust" => &["no_run", "compile_fail"],
                "sh" => &["parsed"],
                "sql" => &["postgres", "mariadb", "sqlite", "roles"],
                "toml" | "text" => &[],
                _ => panic!("{}: nothing tests a block of `{language}`", block.place),
            };
            for mark in marks {
                assert!(known.contains(&mark.as_str()), "{}: `{mark}` says nothing about `{language}`", block.place);
            }
        }
    }
}

#[test]
fn every_page_with_rust_is_a_documentation_test() {
    let tested = include_str!("../../src/lib.rs");
    for page in pages() {
        if page.blocks().iter().any(|block| block.language() == "rust") {
            assert!(tested.contains(&format!("\"../../{}\"", page.path)), "`{}` is not compiled", page.path);
        }
    }
}

#[test]
fn blocks_and_words_are_found_where_they_stand() {
    let page = Page::new("a.md", "one `two` three\n```sql postgres\nSELECT `1`;\n```\n`four`\n\n```\nfive\n```\n");
    assert_eq!(page.quoted(), [("a.md:1".to_owned(), "two"), ("a.md:5".to_owned(), "four")]);
    let blocks = page.blocks();
    assert_eq!((blocks[0].language(), blocks[0].text.as_str()), ("sql", "SELECT `1`;\n"));
    assert!(blocks[0].is_marked("postgres") && !blocks[0].is_marked("sql"));
    assert_eq!((blocks[1].language(), blocks[1].place.as_str()), ("", "a.md:7"));
}
