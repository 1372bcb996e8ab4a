//! What the compiler says to code that is wrong, and what a user's build contains.
//!
//! Each file in `tests/ui` is compiled on its own, against the libraries this very build has made: nothing is built a second
//! time. The lines that begin with `//~` have to be in what the compiler says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn cargo(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// What the files in `tests/ui` use.
const USED: [&str; 3] = ["outbox", "diesel", "serde"];

/// The libraries of that name this package or one of its tools stands on.
fn libraries() -> [Vec<PathBuf>; 3] {
    let built = cargo(&["build", "-p", "outbox-tests", "--lib", "--message-format=json", "--quiet"]);
    let mut libraries = [const { Vec::new() }; 3];
    for line in String::from_utf8(built.stdout).unwrap().lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        let Some(n) = USED.iter().position(|name| message["target"]["name"] == *name) else { continue };
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(|file| file.as_str());
        libraries[n].extend(files.filter(|file| file.ends_with(".rlib")).map(PathBuf::from));
    }
    libraries
}

fn compile(file: &Path, libraries: &[&PathBuf; 3], folder: &Path) -> Output {
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--color=never"]).arg(file);
    rustc.arg("--out-dir").arg(folder);
    for (name, library) in USED.iter().zip(libraries) {
        rustc.arg("--extern").arg(format!("{name}={}", library.display()));
        rustc.arg("-L").arg(format!("dependency={}", library.parent().unwrap().display()));
    }
    rustc.output().unwrap()
}

#[test]
fn the_compiler_says_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let ui = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui");
    let [outbox, diesel, serde] = &libraries();
    // Tools have their own copies; those of one build are those with which the right code compiles.
    let all = outbox.iter().flat_map(|outbox| diesel.iter().map(move |diesel| (outbox, diesel)));
    let mut all = all.flat_map(|(outbox, diesel)| serde.iter().map(move |serde| [outbox, diesel, serde]));
    let right = |libraries: &[&PathBuf; 3]| compile(&ui.join("right.rs"), libraries, folder.path()).status.success();
    let libraries = all.find(right).expect("the right code compiles");
    let mut missing = Vec::new();
    let mut seen = 0;
    for file in std::fs::read_dir(&ui).unwrap() {
        let file = file.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("//~ ")).collect();
        let output = compile(&file, &libraries, folder.path());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), expected.is_empty(), "{}\n{said}", file.display());
        // Longer lines are broken, and what was written is repeated; neither matters.
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for line in expected {
            let outside_of_the_file = said.replace(&format!("//~ {line}"), "");
            if !outside_of_the_file.contains(line) {
                missing.push(format!("{}: `{line}` is not in\n{said}", file.display()));
            }
        }
        seen += 1;
    }
    assert!(missing.is_empty(), "{}", missing.join("\n\n"));
    assert!(seen >= 6, "only {seen} files");
}

#[test]
fn a_build_for_postgres_links_no_foreign_library() {
    let features = ["--no-default-features", "--features", "postgres,async,opentelemetry"];
    let tree = |more: &[&str]| {
        let output = cargo(&[&["tree", "-p", "outbox", "-e", "normal,build", "--prefix", "none"], more].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let foreign = |tree: &str| -> Vec<String> {
        let names = tree.lines().filter_map(|line| line.split(' ').next());
        names.filter(|name| name.ends_with("-sys") || name.ends_with("-src")).map(str::to_owned).collect()
    };
    let postgres = tree(&features);
    assert!(postgres.contains("diesel-async v"), "{postgres}");
    assert_eq!(foreign(&postgres), [""; 0]);
    // What would be found.
    assert_ne!(foreign(&tree(&["--features", "sqlite-bundled"])), [""; 0]);
}

#[test]
fn the_package_contains_its_sql() {
    let output = cargo(&["package", "-p", "outbox", "--list", "--allow-dirty", "--quiet"]);
    let files = String::from_utf8(output.stdout).unwrap();
    for database in ["postgres", "mysql", "sqlite"] {
        let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(database);
        for migration in std::fs::read_dir(migrations).unwrap() {
            let name = migration.unwrap().file_name().into_string().unwrap();
            let up = format!("migrations/{database}/{name}/up.sql");
            assert!(files.lines().any(|line| line == up), "{up} is not among\n{files}");
        }
    }
}
