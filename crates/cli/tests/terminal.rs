//! A chat in a terminal, and commands that are interrupted.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, fixture, interrupt, prose, text};
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The program in a terminal of `script`, which every Linux has.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn new(place: &Place, args: &str) -> Self {
        Self::shell(place, &format!("exec {} {args}", place.alluvium(&[]).get_program().display()))
    }

    /// Runs a line of a shell.
    fn shell(place: &Place, line: &str) -> Self {
        let program = place.alluvium(&[]);
        let line = format!("stty cols 80 rows 24; {line}");
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).current_dir(place.path(""));
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keys, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, keys, screen, seen: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until these words appear after all that was waited for before.
    fn wait(&mut self, words: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.seen.contains(words) {
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen += &text(&bytes),
                Err(_) => panic!("{words:?} did not appear in {:?}", self.seen),
            }
        }
        let at = self.seen.find(words).unwrap() + words.len();
        let rest = self.seen.split_off(at);
        std::mem::replace(&mut self.seen, rest)
    }

    /// Waits for the end: the exit code.
    fn code(mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().unwrap();
        panic!("it did not end: {:?}", self.seen)
    }
}

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

#[test]
fn a_chat_edits_pastes_stops_an_answer_and_remembers() {
    let place = Place::trained();
    fs::write(place.path("chat.jinja"), "{% for m in messages %}{{ m.content }}\n{% endfor %}").unwrap();
    let model = fixture("models/qwen3_next-q4g64");
    let mut chat = Terminal::new(&place, &format!("chat --model {model} --temp 0 -m 12"));
    chat.wait(">> ");
    // two letters change their places
    chat.press("abdc\x1b[D\x1b[D\x04\x1b[Cd\r");
    chat.wait("cut off after 12 tokens; -m N allows more");
    chat.wait(">> ");
    chat.press("\x1b[200~one\r  two\x1b[201~");
    chat.press("\r");
    chat.wait("cut off after 12 tokens");
    chat.wait(">> ");
    chat.press("\"\"\"\rthree\rfour\r\"\"\"\r");
    chat.wait("cut off after 12 tokens");
    chat.wait(">> ");
    chat.press("/save chat.json\r");
    chat.wait("6 messages saved");
    // keys before the prompt are read by the terminal, not by the chat
    chat.wait(">> ");
    chat.press(CTRL_D);
    assert_eq!(chat.code(), Some(0));
    let saved: serde_json::Value = serde_json::from_slice(&fs::read(place.path("chat.json")).unwrap()).unwrap();
    let said: Vec<&str> = [0, 2, 4].map(|at: usize| saved["messages"][at]["content"].as_str().unwrap()).to_vec();
    assert_eq!(said, ["abcd", "one\n  two", "three\nfour"]);

    let args = "chat --model run --chat-template chat.jinja --temp 0 -m 1000000";
    let mut chat = Terminal::new(&place, args);
    chat.wait(">> ");
    // the history of the chat before, whose last line was /save
    chat.press("\x1b[A\x1b[A\r");
    std::thread::sleep(Duration::from_millis(500));
    chat.press(CTRL_C);
    chat.wait("stopped; the answer so far stays in the conversation");
    chat.wait(">> ");
    chat.press("/tokens\r");
    chat.wait("2 messages, ");
    chat.wait(">> ");
    chat.press(CTRL_C);
    chat.wait("Ctrl-C again or Ctrl-D ends the chat");
    chat.press(CTRL_C);
    assert_eq!(chat.code(), Some(130));
}

/// Sends a signal to a process.
fn signal(pid: &str, name: &str) {
    assert!(Command::new("kill").args(["-s", name, pid]).status().unwrap().success());
}

#[test]
fn a_signal_ends_a_chat_and_restores_the_terminal() {
    let place = Place::trained();
    fs::write(place.path("chat.jinja"), "{% for m in messages %}{{ m.content }}\n{% endfor %}").unwrap();
    let program = place.alluvium(&[]).get_program().display().to_string();
    let chat = format!("exec {program} chat --model run --chat-template chat.jinja --temp 0 -m 1000000");
    let line = format!("sh -c 'echo pid=$$=; {chat}'; echo code=$?; stty -a; echo the end");
    for (name, code, is_answering) in [("TERM", 143, false), ("TERM", 143, true), ("HUP", 129, false)] {
        let mut chat = Terminal::shell(&place, &line);
        chat.wait("pid=");
        let pid = chat.wait("=").trim_end_matches('=').to_owned();
        chat.wait(">> ");
        if is_answering {
            chat.press("bada\r");
            std::thread::sleep(Duration::from_millis(500));
        }
        signal(&pid, name);
        let end = chat.wait("the end");
        assert!(end.contains(&format!("code={code}")), "{name}: {end}");
        assert!(end.contains(" icanon") && end.contains(" echo ") && !end.contains("-icanon"), "{name}: {end}");
        assert!(is_answering || end.contains("\x1b[?2004l"), "{name}: {end:?}");
        assert_eq!(chat.code(), Some(0));
    }
}

#[test]
fn a_run_under_nohup_goes_on_after_its_terminal_is_gone() {
    let place = Place::trained();
    let program = place.alluvium(&[]).get_program().display().to_string();
    let generate = [&program, "generate", "--model", "run", "-p", "bada", "-m", "10000000", "--temp", "0"];
    let mut child = Command::new("nohup");
    child.args(generate).current_dir(place.path("")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    signal(&child.id().to_string(), "HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it ended");
    signal(&child.id().to_string(), "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_progress_line_fits_its_terminal() {
    let place = Place::new();
    let mut train = Terminal::new(&place, "train --data text --out run -c tiny.toml --iters 60 --sample-tokens 0");
    let screen = train.wait("report ");
    assert_eq!(train.code(), Some(0));
    let lines = screen.split(['\r', '\n']).filter(|line| line.contains("/60 ") && line.contains('─'));
    let widths: Vec<usize> = lines.map(|line| plain(line).chars().count()).collect();
    assert!(!widths.is_empty() && widths.iter().all(|&width| width <= 80), "{widths:?}");
    assert!(screen.contains("step 60/60 · loss "), "{screen}");
    assert!(screen.contains("training the tokenizer"), "{screen}");
}

/// A line without the sequences that move the cursor.
fn plain(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let first = parts.next().unwrap_or("").to_owned();
    parts.fold(first, |all, part| all + part.trim_start_matches(|c: char| !c.is_alphabetic()).get(1..).unwrap_or(""))
}

#[test]
fn errors_have_color_unless_the_user_wants_none() {
    let place = Place::new();
    let error = |before: &str| {
        let program = place.alluvium(&[]).get_program().display().to_string();
        let line = format!("{before} {program} info nowhere");
        let output = Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").output().unwrap();
        text(&output.stdout)
    };
    assert!(error("").contains("\x1b[1;31merror:\x1b[0m nowhere"), "{:?}", error(""));
    for before in ["NO_COLOR=1", "TERM=dumb"] {
        assert!(error(before).contains("error: nowhere") && !error(before).contains('\x1b'), "{:?}", error(before));
    }
}

#[test]
fn interrupted_commands_exit_with_130() {
    let place = Place::trained();
    fs::write(place.path("long.txt"), prose(5, 400_000)).unwrap();
    for args in [
        &["generate", "--model", "run", "-p", "bada", "-m", "10000000", "--temp", "0"][..],
        &["perplexity", "--model", "run", "--data-path", "long.txt"],
        &["bench", "--model", &fixture("models/llama-f32"), "-g", "1000000"],
        &["check"],
    ] {
        let mut child = place.alluvium(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(400));
        assert!(child.try_wait().unwrap().is_none(), "{args:?} ended before it could be interrupted");
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}");
    }
}
