//! Links between pages.

use super::pages::{Page, pages, root};

/// What a link says, and where it stands.
fn targets(page: &Page) -> Vec<(String, &str)> {
    let mut targets = Vec::new();
    for (number, line) in page.prose() {
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            targets.push((format!("{}:{number}", page.path), target));
        }
    }
    targets
}

/// The name a heading goes by in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|character| match character {
        ' ' => Some('-'),
        '-' | '_' => Some(character),
        _ if character.is_alphanumeric() => Some(character),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}

fn anchors(page: &Page) -> Vec<String> {
    let headings = page.prose().into_iter().filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#'))).collect()
}

/// What is wrong with the links of a page.
fn dead_links(page: &Page, pages: &[Page]) -> Vec<String> {
    let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut dead = Vec::new();
    for (place, target) in targets(page) {
        if target.contains("://") {
            continue;
        }
        let (file, fragment) = target.split_once('#').map_or((target, None), |(file, name)| (file, Some(name)));
        let path = match file {
            "" => page.path.clone(),
            _ => match file.strip_prefix("../") {
                Some(above) => above.to_owned(),
                None if folder.is_empty() => file.to_owned(),
                None => format!("{folder}/{file}"),
            },
        };
        let known = pages.iter().find(|page| page.path == path);
        let is_there = match (known, fragment) {
            (Some(known), Some(name)) => anchors(known).iter().any(|anchor| anchor == name),
            (Some(_), None) => true,
            (None, _) => root().join(&path).exists(),
        };
        if !is_there {
            dead.push(format!("{place}: `{target}` is not there"));
        }
    }
    dead
}

#[test]
fn links_between_pages_lead_somewhere() {
    let pages = pages();
    let dead: Vec<String> = pages.iter().flat_map(|page| dead_links(page, &pages)).collect();
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn links_to_nothing_are_found() {
    let page =
        Page::new("docs/A.md", "# One `two`, three\n[a](#one-two-three) [b](#four)\n[c](../README.md) [d](B.md)\n");
    let dead = dead_links(&page, std::slice::from_ref(&page));
    assert_eq!(dead, ["docs/A.md:2: `#four` is not there", "docs/A.md:3: `B.md` is not there"]);
}

#[test]
fn every_page_can_be_reached_from_the_first() {
    let pages = pages();
    let readme = &pages[0];
    for page in pages.iter().filter(|page| page.path.starts_with("docs/")) {
        let is_linked = targets(readme).iter().any(|(_, target)| *target == page.path);
        assert!(is_linked, "README.md does not link to `{}`", page.path);
    }
}
