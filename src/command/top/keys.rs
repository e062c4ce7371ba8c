//! What the keys do, as in top.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use vfio_ccw_metrics::{DeviceClass, Operation};

use super::figures::{Choice, Sort};
use super::reading::Reading;
use super::seconds;

/// Subchannels that PgUp and PgDn move by.
const PAGE: usize = 10;

/// Most characters of an answer.
const MOST_CHARACTERS: usize = 10;

/// What the user has set.
#[derive(Clone, Debug)]
pub(super) struct Controls {
    pub(super) interval: Duration,
    pub(super) choice: Choice,
    pub(super) sort: Sort,
    pub(super) scroll: usize,
    pub(super) paused: bool,
    pub(super) help: bool,
    /// The answer so far, while the interval is asked for.
    asking: Option<String>,
    /// What was wrong with the last answer.
    wrong: Option<String>,
    pub(super) over: bool,
}

impl Controls {
    pub(super) fn new(interval: Duration) -> Self {
        Controls {
            interval,
            choice: Choice::default(),
            sort: Sort::default(),
            scroll: 0,
            paused: false,
            help: false,
            asking: None,
            wrong: None,
            over: false,
        }
    }

    /// A key was pressed, while this is the last reading.
    pub(super) fn press(&mut self, key: KeyEvent, reading: Option<&Reading>) {
        if key.kind == KeyEventKind::Release {
            return;
        }
        // The terminal sends no signals while it is read key by key.
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            self.over |= matches!(key.code, KeyCode::Char('c' | 'd'));
            return;
        }
        self.wrong = None;
        match self.asking.take() {
            Some(answer) => self.answer(answer, key.code),
            None => self.order(key.code, reading),
        }
    }

    fn order(&mut self, key: KeyCode, reading: Option<&Reading>) {
        match key {
            KeyCode::Char('q' | 'Q') => self.over = true,
            KeyCode::Char(' ' | 'p' | 'P') => self.paused = !self.paused,
            KeyCode::Char('s' | 'S') => self.asking = Some(String::new()),
            KeyCode::Char('h' | 'H' | '?') | KeyCode::F(1) => self.help = !self.help,
            KeyCode::Esc => self.help = false,
            KeyCode::Char('b' | 'B' | 't' | 'T') => self.sort = Sort::Busy,
            KeyCode::Char('r' | 'R') => self.sort = Sort::Requests,
            KeyCode::Char('e' | 'E') => self.sort = Sort::Errors,
            KeyCode::Char('c' | 'C') => {
                let known = DeviceClass::ALL.map(DeviceClass::name);
                next(&mut self.choice.class, "class", &known, reading);
            }
            KeyCode::Char('o' | 'O') => {
                let known = Operation::ALL.map(Operation::name);
                next(&mut self.choice.operation, "operation", &known, reading);
            }
            KeyCode::Up => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down => self.scroll += 1,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(PAGE),
            KeyCode::PageDown => self.scroll += PAGE,
            KeyCode::Home => self.scroll = 0,
            _ => {}
        }
        let subchannels = reading
            .map_or(0, |reading| reading.series("vfio_ccw_subchannel_requests_total").count());
        self.scroll = self.scroll.min(subchannels.saturating_sub(1));
    }

    fn answer(&mut self, mut answer: String, key: KeyCode) {
        match key {
            KeyCode::Enter if answer.is_empty() => return,
            KeyCode::Enter => {
                match seconds(&answer) {
                    Ok(interval) => self.interval = interval,
                    Err(wrong) => self.wrong = Some(wrong),
                }
                return;
            }
            KeyCode::Esc => return,
            KeyCode::Backspace => {
                answer.pop();
            }
            KeyCode::Char(more) if answer.len() < MOST_CHARACTERS && more.is_ascii_graphic() => {
                answer.push(more);
            }
            _ => {}
        }
        self.asking = Some(answer);
    }

    /// The last line of the screen.
    pub(super) fn foot(&self) -> String {
        if let Some(answer) = &self.asking {
            return format!(
                "seconds between scrapes (now {}, Enter keeps them): {answer}_",
                self.interval.as_secs_f64()
            );
        }
        if let Some(wrong) = &self.wrong {
            return wrong.clone();
        }
        let (state, pause) = if self.paused { ("HELD  ", "go on") } else { ("", "hold") };
        format!(
            "{state}q end  p {pause}  s every {} s  c class  o operation  B R E by {}  h help",
            self.interval.as_secs_f64(),
            self.sort.name()
        )
    }
}

/// From all to the first value that the service has, from each to the next, and from the last to all.
fn next(chosen: &mut Option<String>, label: &str, known: &[&str], reading: Option<&Reading>) {
    let name = "vfio_ccw_stage_duration_seconds_count";
    let there = reading.map(|reading| reading.label_values(name, label)).unwrap_or_default();
    let known = known.iter().filter(|known| there.contains(**known));
    let others = there.iter().filter(|other| !known.clone().any(|known| known == *other));
    let mut values = known.clone().chain(others);
    if let Some(chosen) = chosen {
        // One that is gone is followed by all.
        values.find(|value| **value == chosen.as_str());
    }
    *chosen = values.next().map(|value| (*value).to_owned());
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::{pages, readings};
    use super::*;

    fn press(controls: &mut Controls, keys: &str) {
        let [_, reading] = readings(pages());
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\x08' => KeyCode::Backspace,
                '↓' => KeyCode::Down,
                '↑' => KeyCode::Up,
                '⇓' => KeyCode::PageDown,
                key => KeyCode::Char(key),
            };
            controls.press(code.into(), Some(&reading));
        }
    }

    fn pressed(keys: &str) -> Controls {
        let mut controls = Controls::new(Duration::from_secs(1));
        press(&mut controls, keys);
        controls
    }

    #[test]
    fn it_ends_when_told_so() {
        assert!(pressed("q").over && !pressed("hp ").over);
        let mut controls = pressed("s");
        controls.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), None);
        assert!(controls.over);
    }

    #[test]
    fn switches_go_back_and_forth() {
        assert!(pressed("p").paused && !pressed("p ").paused);
        assert!(pressed("?").help && !pressed("h?").help && !pressed("h\x1b").help);
        assert_eq!(
            ["R", "e", "b", ""].map(|keys| pressed(keys).sort),
            [Sort::Requests, Sort::Errors, Sort::Busy, Sort::Busy]
        );
    }

    #[test]
    fn classes_and_operations_come_one_after_the_other() {
        let class = |keys| pressed(keys).choice.class;
        let all = ["", "c", "cc", "ccc"].map(class);
        assert_eq!(all, [None, Some("null".into()), Some("fba".into()), None]);
        let operations = ["o", "oo", "ooo"].map(|keys| pressed(keys).choice.operation.unwrap());
        assert_eq!(operations, ["read", "write", "control"]);
        let mut nothing = Controls::new(Duration::from_secs(1));
        nothing.press(KeyCode::Char('c').into(), None);
        assert_eq!(nothing.choice, Choice::default());
    }

    #[test]
    fn the_interval_is_asked_for() {
        let after = |keys| pressed(keys).interval.as_secs_f64();
        assert_eq!(["s2\n", "s\n", "s2\x1b", "s02\x08.5\n"].map(after), [2.0, 1.0, 1.0, 0.5]);
        assert!(pressed("s12").foot().ends_with(": 12_"));
        let wrong = pressed("sq\n");
        assert!(!wrong.over && wrong.interval.as_secs() == 1);
        assert!(wrong.foot().contains("'q'"), "{}", wrong.foot());
        assert!(pressed("s99999999999999\n").foot().contains("3600"));
    }

    #[test]
    fn one_cannot_scroll_past_the_end() {
        assert_eq!(["↓", "↓↓↓↓↓↓", "⇓↑", "↑"].map(|keys| pressed(keys).scroll), [1, 2, 1, 0]);
    }
}
