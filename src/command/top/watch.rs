//! The terminal: draws, listens to keys, and gives the terminal back, whatever happens.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};
use std::{process, thread};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::disable_raw_mode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::super::Failure;
use super::super::interrupt::EXIT_INTERRUPTED;
use super::address::Address;
use super::keys::Controls;
use super::picture::Picture;
use super::reading::Reading;
use super::scrape::{ScrapeError, Scraper};
use super::view::{Palette, Screen};

/// How long keys are waited for before signals and scrapes are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long the loop may take to see a signal.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows the service until the user has seen enough.
pub(super) fn watch(address: Address, interval: Duration) -> Result<bool, Failure> {
    if !io::stdout().is_terminal() {
        return Err("standard output is not a terminal: use --once for a report".into());
    }
    let over = over_flag()?;
    let name = address.to_string();
    let scrapes = Scrapes::start(Scraper::new(address)?)?;
    let mut terminal = Terminal::take()?;
    Watch {
        name,
        scrapes,
        asked: None,
        under_way: false,
        picture: Picture::default(),
        controls: Controls::new(interval),
        palette: Palette::of_environment(),
    }
    .run(&mut terminal.0, &over)?;
    Ok(true)
}

/// A flag that signals set.
///
/// A terminal that has gone, or takes no more output, can hold up the loop that looks at the flag (crossterm 0.29
/// reads the end of its input for ever): then the process is ended from here.
fn over_flag() -> Result<Arc<AtomicBool>, Failure> {
    let over = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let flag = over.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            // Relaxed: the flag is all that the signal says.
            flag.store(true, Ordering::Relaxed);
            thread::sleep(PATIENCE);
            // Not the screen: writing may be what holds up the loop.
            let _ = disable_raw_mode();
            process::exit(EXIT_INTERRUPTED);
        }
    })?;
    Ok(over)
}

/// The terminal while it is ours. A panic gives it back before its message, by ratatui's hook.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn take() -> io::Result<Self> {
        ratatui::try_init().map(Terminal).inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// A thread that scrapes when asked, so that keys need not wait for a server that does not answer.
#[derive(Debug)]
struct Scrapes {
    ask: Sender<()>,
    answers: Receiver<Result<Reading, ScrapeError>>,
}

impl Scrapes {
    fn start(scraper: Scraper) -> io::Result<Self> {
        let (ask, asked) = channel();
        let (answer, answers) = channel();
        // It ends when nobody asks any more; nobody waits for that.
        thread::Builder::new().name("scrape".into()).spawn(move || {
            while asked.recv().is_ok() {
                if answer.send(scraper.reading()).is_err() {
                    break;
                }
            }
        })?;
        Ok(Scrapes { ask, answers })
    }
}

#[derive(Debug)]
struct Watch {
    name: String,
    scrapes: Scrapes,
    asked: Option<Instant>,
    under_way: bool,
    picture: Picture,
    controls: Controls,
    palette: Palette,
}

impl Watch {
    fn run(mut self, terminal: &mut DefaultTerminal, over: &AtomicBool) -> Result<(), Failure> {
        let mut changed = true;
        // Relaxed: the flag is all that the signal says.
        while !self.controls.over && !over.load(Ordering::Relaxed) {
            changed |= self.scrape()?;
            if changed || self.picture.is_out() {
                self.draw(terminal)?;
            }
            changed = event::poll(LOOK)?;
            if changed && let Event::Key(key) = event::read()? {
                self.controls.press(key, self.picture.newest());
            }
        }
        Ok(())
    }

    /// Takes what has come, and asks for more when it is time. Whether something has come.
    fn scrape(&mut self) -> Result<bool, Failure> {
        let came = match self.scrapes.answers.try_recv() {
            Ok(answer) => {
                self.under_way = false;
                self.picture.take(answer, self.controls.paused);
                true
            }
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => return Err("the scraping thread has ended".into()),
        };
        let due = self.asked.is_none_or(|asked| asked.elapsed() >= self.controls.interval);
        if due && !self.under_way {
            self.scrapes.ask.send(())?;
            self.under_way = true;
            self.asked = Some(Instant::now());
        }
        Ok(came)
    }

    fn draw(&self, terminal: &mut DefaultTerminal) -> io::Result<()> {
        let Controls { choice, sort, .. } = &self.controls;
        let figures = self.picture.figures(choice, *sort);
        let notice = self.picture.notice();
        let foot = self.controls.foot();
        let screen = Screen {
            address: &self.name,
            figures: figures.as_ref(),
            choice,
            sort: *sort,
            scroll: self.controls.scroll,
            help: self.controls.help,
            notice: notice.as_ref(),
            foot: &foot,
            palette: self.palette,
        };
        terminal.draw(|frame| screen.draw(frame)).map(|_| ())
    }
}
