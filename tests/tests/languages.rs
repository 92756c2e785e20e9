//! The README shows code of the examples for other languages, which `make test-languages` runs.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

const README: &str = include_str!("../../README.md");
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// The paragraphs of the README's blocks in a language.
fn paragraphs(language: &str) -> Vec<String> {
    let section = README.split("\n## ").find(|part| part.starts_with("Other languages\n")).unwrap();
    let mut blocks = section.split("\n```").skip(1).step_by(2);
    let block = blocks.find_map(|block| block.strip_prefix(&format!("{language}\n"))).unwrap();
    block.split("\n\n").map(unindented).collect()
}

fn unindented(text: &str) -> String {
    text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n")
}

/// The programs in a folder of the examples.
fn programs(folder: &str, extension: &str) -> Vec<String> {
    let files = fs::read_dir(Path::new(EXAMPLES).join(folder)).unwrap().map(|file| file.unwrap().path());
    let programs = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    programs.map(|path| unindented(&fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn the_readme_shows_code_of_the_examples() {
    for (language, folder, extension) in [("python", "python", "py"), ("js", "node", "js")] {
        let programs = programs(folder, extension);
        for paragraph in paragraphs(language) {
            let shown = programs.iter().any(|program| program.contains(&paragraph));
            assert!(shown, "expected a program of examples/{folder} with these lines:\n{paragraph}");
        }
    }
}
