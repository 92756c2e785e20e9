//! `top`: all tasks at a glance, once a second.

mod figures;
mod observer;
mod view;
mod walk;

use std::io::{self, IsTerminal as _};
use std::thread;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::figures::Figures;
use self::observer::Observer;
use crate::failure::Failure;
use crate::output::Output;
use crate::servers::Servers;
use crate::times::now_ms;

/// Shows the figures until q is pressed, or prints them as JSON until nobody reads them.
pub(crate) async fn top(servers: &Servers, records: usize, output: &mut Output) -> Result<(), Failure> {
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if !has_terminal && !output.is_json() {
        return Err(Failure::NoTerminal);
    }
    // A wrong address is told before the terminal changes.
    let observer = Observer::connect(servers, records).await?;
    let (sender, mut figures) = watch::channel(Figures::default());
    tokio::select! {
        () = observer.observe(&sender) => Ok(()),
        shown = async {
            if output.is_json() { print(&mut figures, output).await } else { show(&mut figures).await }
        } => shown,
    }
}

async fn print(figures: &mut watch::Receiver<Figures>, output: &mut Output) -> Result<(), Failure> {
    while figures.changed().await.is_ok() {
        let now = figures.borrow_and_update().clone();
        output.object(&now)?;
        output.flush()?;
    }
    Ok(())
}

async fn show(figures: &mut watch::Receiver<Figures>) -> Result<(), Failure> {
    let mut ends = Ends::listen().map_err(Failure::Terminal)?;
    // Without figures there is nothing to draw.
    tokio::select! {
        changed = figures.changed() => if changed.is_err() { return Ok(()) },
        () = ends.next() => return Ok(()),
    }
    // It may have changed the terminal before it failed.
    let mut terminal = ratatui::try_init().inspect_err(|_| ratatui::restore()).map_err(Failure::Terminal)?;
    let mut events = events();
    let shown = async {
        loop {
            let drawn = terminal.draw(|frame| view::draw(frame, &figures.borrow_and_update(), now_ms()));
            drawn.map_err(Failure::Terminal)?;
            tokio::select! {
                changed = figures.changed() => if changed.is_err() { return Ok(()) },
                () = ends.next() => return Ok(()),
                event = events.recv() => match event {
                    Some(Event::Key(key)) if is_the_end(key) => return Ok(()),
                    // Everything else only makes the screen be drawn again.
                    Some(_) => {}
                    None => return Ok(()),
                }
            }
        }
    }
    .await;
    ratatui::try_restore().map_err(Failure::Terminal)?;
    shown
}

/// The signals that end this process, which would leave the terminal as it is.
struct Ends([Signal; 3]);

impl Ends {
    fn listen() -> io::Result<Self> {
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self([terminate?, interrupt?, hangup?]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

fn is_the_end(key: KeyEvent) -> bool {
    // In raw mode, Ctrl-C is a key like others.
    let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// The events of the terminal. Reading them blocks, so a thread does it until the process ends.
fn events() -> mpsc::UnboundedReceiver<Event> {
    let (sender, events) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    events
}
