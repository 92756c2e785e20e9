//! What `make` installs: no package without a yes, and no file where the caller may not write. The programs
//! that would install are stand-ins, which log how they are called.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pmcptask_tests::skipped;
use tempfile::TempDir;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What installs gcc, libc6-dev and redis-server, as a user of sudo types it.
const COMMAND: &str =
    "sudo apt-get update && sudo apt-get install --no-install-recommends gcc libc6-dev redis-server";

/// How apt-get is called after a yes.
const INSTALLS: [&str; 2] =
    ["apt-get update -qq", "apt-get install -y -qq --no-install-recommends gcc libc6-dev redis-server"];

/// A Debian machine, as a user who may use sudo sees it: PATH has stand-ins, and what the scripts need.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn with_everything() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.programs()).unwrap();
        for name in
            ["bash", "cat", "dirname", "echo", "env", "getconf", "head", "install", "make", "sed", "sh"]
        {
            symlink(found(name).unwrap(), machine.programs().join(name)).unwrap();
        }
        // The scripts take the program clang as a sign of libclang.
        for name in ["apt-cache", "apt-get", "cargo", "cargo-deny", "cc", "clang", "redis-server"] {
            machine.add(name, "");
        }
        machine.add("id", "echo 1000");
        machine.add("sudo", "exec \"$@\"");
        machine
    }

    /// Without a C compiler and a server.
    fn with_little() -> Self {
        Self::with_everything().without("cc").without("redis-server")
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.programs().join(name)).unwrap();
        self
    }

    fn add(&self, name: &str, script: &str) {
        let path = self.programs().join(name);
        let log = self.log();
        let script = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{script}\n", log.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    fn programs(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// How these programs were called.
    fn calls_of(&self, names: &[&str]) -> Vec<String> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let is_one = |line: &&str| names.iter().any(|name| line.split(' ').next() == Some(name));
        log.lines().filter(is_one).map(str::to_owned).collect()
    }

    /// Runs a command without a terminal, in the repository. Variables of this process, such as CI, do not
    /// count.
    fn run(&self, words: &[&str], variables: &[(&str, &str)]) -> Said {
        let mut command = self.command(words);
        Said::of(command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap())
    }

    fn command(&self, words: &[&str]) -> Command {
        let (program, rest) = words.split_first().unwrap();
        let mut command = Command::new(self.programs().join(program));
        command.args(rest).current_dir(REPOSITORY).env_clear().env("PATH", self.programs());
        // Without the servers that `make test-servers` puts there.
        command.env("CARGO_TARGET_DIR", self.folder.path().join("target"));
        command
    }
}

/// The place of a program of this system.
fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[derive(Debug)]
struct Said {
    succeeded: bool,
    /// Output and errors.
    text: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let Output { status, stdout, stderr } = output;
        let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
        Self { succeeded: status.success(), text }
    }

    fn assert_refused_with(&self, words: &[&str]) {
        assert!(!self.succeeded && words.iter().all(|word| self.text.contains(word)), "{words:?}: {self:#?}");
    }
}

const CHECK: [&str; 4] = ["bash", "scripts/prerequisites.sh", "check", "redis-server"];
const INSTALL: [&str; 4] = ["bash", "scripts/prerequisites.sh", "install", "redis-server"];

#[test]
fn a_machine_that_has_everything_is_left_alone() {
    let machine = Machine::with_everything();
    for words in [CHECK, INSTALL] {
        let said = machine.run(&words, &[("YES", "1")]);
        assert!(said.succeeded && said.text.is_empty(), "{said:?}");
    }
    assert!(!machine.log().exists());
}

#[test]
fn a_yes_installs_what_is_missing() {
    for yes in [("YES", "1"), ("YES", "yes"), ("CI", "1"), ("CI", "true")] {
        let machine = Machine::with_little();
        let said = machine.run(&INSTALL, &[yes]);
        assert!(said.succeeded && said.text.contains("gcc libc6-dev redis-server"), "{said:?}");
        assert_eq!(machine.calls_of(&["apt-get"]), INSTALLS, "{yes:?}");
        assert_eq!(machine.calls_of(&["sudo"]).len(), 2);
    }
}

#[test]
fn root_needs_no_sudo() {
    let machine = Machine::with_little().without("sudo");
    machine.add("id", "echo 0");
    let said = machine.run(&INSTALL, &[("YES", "1")]);
    assert!(said.succeeded, "{said:?}");
    assert_eq!(machine.calls_of(&["apt-get"]), INSTALLS);
}

#[test]
fn without_a_yes_and_a_terminal_the_command_is_shown_and_nothing_is_installed() {
    for no in [("YES", ""), ("YES", "0"), ("CI", "false")] {
        let machine = Machine::with_little();
        machine.run(&INSTALL, &[no]).assert_refused_with(&["Missing: cc redis-server", "YES=1", COMMAND]);
        assert_eq!(machine.calls_of(&["apt-get", "sudo"]), [""; 0], "{no:?}");
    }
}

#[test]
fn at_a_terminal_the_answer_decides() {
    let Some(script) = found("script") else {
        return skipped("at_a_terminal_the_answer_decides", "no program `script`, which makes a terminal");
    };
    for (answer, installs) in [("y\n", true), ("n\n", false), ("\n", false)] {
        let machine = Machine::with_little();
        symlink(&script, machine.programs().join("script")).unwrap();
        let mut process = machine
            .command(&["script", "-qec", &INSTALL.join(" "), "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.as_mut().unwrap().write_all(answer.as_bytes()).unwrap();
        let said = Said::of(process.wait_with_output().unwrap());
        assert!(said.succeeded == installs && said.text.contains(COMMAND), "{answer:?}: {said:?}");
        assert_eq!(!machine.calls_of(&["apt-get"]).is_empty(), installs, "{answer:?}");
    }
}

#[test]
fn a_user_without_sudo_is_told_what_root_runs() {
    let machine = Machine::with_little().without("sudo");
    for words in [CHECK, INSTALL] {
        let said = machine.run(&words, &[("YES", "1")]);
        said.assert_refused_with(&["as root", &COMMAND.replace("sudo ", "")]);
        assert!(!said.text.contains("sudo"), "{said:?}");
    }
    assert_eq!(machine.calls_of(&["apt-get"]), [""; 0]);
}

#[test]
fn a_system_without_apt_get_is_told_what_is_missing() {
    let machine = Machine::with_little().without("apt-get");
    for words in [CHECK, INSTALL] {
        machine
            .run(&words, &[("YES", "1")])
            .assert_refused_with(&["Missing: cc redis-server", "dnf install"]);
    }
    assert_eq!(machine.calls_of(&["sudo"]), [""; 0]);
}

#[test]
fn libclang_comes_in_the_version_of_the_release_as_soon_as_that_is_known() {
    let machine = Machine::with_little().without("clang");
    let script = fs::read_to_string(Path::new(REPOSITORY).join(CHECK[1])).unwrap();
    let path = machine.folder.path().join("prerequisites.sh");
    // This machine may have a libclang where the script looks for it.
    fs::write(&path, script.replace("/usr/lib/llvm", "/nowhere/llvm")).unwrap();
    let check = ["bash", path.to_str().unwrap(), "check"];
    machine.run(&check, &[]).assert_refused_with(&["Missing: cc libclang.", "gcc libc6-dev libclang-dev\n"]);
    machine.add("apt-cache", "echo 'libclang-dev'; echo '  Depends: libclang-14-dev'");
    machine.run(&check, &[]).assert_refused_with(&["gcc libc6-dev libclang1-14 libclang-common-14-dev\n"]);
}

#[test]
fn make_build_and_make_lint_say_what_is_missing_before_they_compile_and_install_nothing() {
    let machine = Machine::with_little();
    // A build needs no server.
    let without_server = COMMAND.replace(" redis-server", "");
    machine.run(&["make", "build", "YES=1"], &[]).assert_refused_with(&["Missing: cc.", &without_server]);
    machine.run(&["make", "lint", "YES=1"], &[]).assert_refused_with(&["Missing: cc.", &without_server]);
    let machine = Machine::with_everything().without("cargo-deny");
    machine
        .run(&["make", "lint", "YES=1"], &[])
        .assert_refused_with(&["Missing: cargo-deny.", "cargo install --locked cargo-deny"]);
    assert!(!machine.log().exists());
}

#[test]
fn make_run_and_make_test_install_only_after_a_yes() {
    for target in ["run", "test"] {
        let machine = Machine::with_little();
        machine.run(&["make", target], &[]).assert_refused_with(&[COMMAND]);
        assert_eq!(machine.calls_of(&["apt-get", "cargo"]), [""; 0], "make {target}");
        machine.run(&["make", target, "YES=1"], &[]);
        let calls = machine.calls_of(&["apt-get", "cargo"]);
        assert_eq!(calls[..2], INSTALLS, "make {target}");
        assert!(calls[2].starts_with("cargo build"), "{calls:?}");
    }
}

#[test]
fn make_test_languages_installs_python_and_node_only_after_a_yes() {
    // This machine has none of them.
    let machine = Machine::with_everything();
    let packages = "install --no-install-recommends nodejs npm python3-venv\n";
    machine
        .run(&["make", "test-languages"], &[])
        .assert_refused_with(&["Missing: node npm python3-venv.", packages]);
    assert_eq!(machine.calls_of(&["apt-get", "cargo"]), [""; 0]);
    machine.run(&["make", "test-languages", "YES=1"], &[]);
    let installs = "apt-get install -y -qq --no-install-recommends nodejs npm python3-venv";
    assert_eq!(machine.calls_of(&["apt-get"]), [INSTALLS[0], installs]);
}

#[test]
fn ci_installs_what_is_missing_and_runs_the_test_command_of_the_readme() {
    let readme = fs::read_to_string(Path::new(REPOSITORY).join("README.md")).unwrap();
    assert!(readme.contains("\nmake test "));
    assert!(readme.contains("`make test YES=1`"));
    let machine = Machine::with_little();
    let said = machine.run(&["bash", ".ci/run"], &[]);
    assert!(said.succeeded, "{said:?}");
    assert_eq!(machine.calls_of(&["apt-get"]), INSTALLS);
    let tests = machine.calls_of(&["cargo"]).into_iter().filter(|call| call.starts_with("cargo test "));
    assert_eq!(tests.collect::<Vec<_>>(), ["cargo test --locked --workspace --all-features"]);
}

#[test]
fn sudo_make_without_rust_is_told_to_leave_sudo_out() {
    let machine = Machine::with_everything().without("cargo");
    let said = machine.run(&["make", "install"], &[("SUDO_USER", "alice")]);
    said.assert_refused_with(&["Rust is missing", "run make without sudo"]);
}

/// The words that make the command after them run as a user who is not root; None if this machine has none.
fn as_a_user(machine: &Machine) -> Option<Vec<&'static str>> {
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        return Some(vec![]);
    }
    symlink(found("setpriv")?, machine.programs().join("setpriv")).unwrap();
    Some(vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
}

#[test]
fn make_install_calls_sudo_only_where_the_caller_may_not_write() {
    for (mode, needs_sudo) in [(0o777, false), (0o555, true)] {
        let machine = Machine::with_everything();
        machine.add("sudo", "");
        let Some(mut words) = as_a_user(&machine) else {
            let test = "make_install_calls_sudo_only_where_the_caller_may_not_write";
            return skipped(test, "this is root, and there is no program `setpriv`");
        };
        let folder = machine.folder.path().to_owned();
        let into = folder.join("into");
        fs::create_dir(&into).unwrap();
        for (path, mode) in [(&folder, 0o777), (&into, mode)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        fs::copy(Path::new(REPOSITORY).join("scripts/install.sh"), folder.join("install.sh")).unwrap();
        fs::write(folder.join("built"), "built").unwrap();
        words.extend(["bash", "install.sh", "built", "into/one/a", "built", "into/b"]);
        let install = |machine: &Machine| {
            let mut command = machine.command(&words);
            Said::of(command.current_dir(&folder).stdin(Stdio::null()).output().unwrap())
        };

        let copies = ["install -D -m 755 built into/one/a", "install -D -m 755 built into/b"];
        let said = install(&machine);
        assert!(said.succeeded, "{said:?}");
        let by_sudo = if needs_sudo { copies.map(|copy| format!("sudo {copy}")).to_vec() } else { vec![] };
        assert_eq!(machine.calls_of(&["sudo"]), by_sudo);
        assert_eq!(["one/a", "b"].map(|file| into.join(file).exists()), [!needs_sudo; 2]);
        if needs_sudo {
            let said = install(&machine.without("sudo"));
            said.assert_refused_with(&["PREFIX=", "run as root", copies[0], copies[1]]);
        }
    }
}
