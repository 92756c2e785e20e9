//! The screen of `top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};

use super::figures::{Figures, OwnerTotals, Statuses};
use crate::printable::in_line;
use crate::times::length;

/// What an operator acts on if it is not 0; docs/operations.md says how.
const ALARMS: [&str; 6] = [
    "panics",
    "failed_calls",
    "default_user_would_lose_writes",
    "refused_corrupt",
    "refused_capacity",
    "corrupt_records_skipped",
];
/// The longest of these names, a count and the frame.
const LONGEST_ALARM: u16 = 44;
const LONGEST_COUNTER: u16 = 35;
/// The other counters of `INFO pmcptask` that are shown.
const COUNTERS: [&str; 7] =
    ["puts", "cas_ok", "cas_conflict", "deletes", "lists", "tasks_trimmed", "index_entries_removed"];

pub(super) fn draw(frame: &mut Frame<'_>, figures: &Figures, now_ms: i64) {
    let [head, middle, owners, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(9),
        Constraint::Min(3),
        Constraint::Length(2),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(figures, now_ms)), head);
    draw_counts(frame, middle, figures);
    frame.render_widget(owners_table(figures, now_ms), owners);
    frame.render_widget(Paragraph::new(footing(figures)), foot);
}

fn heading(figures: &Figures, now_ms: i64) -> Text<'static> {
    let Figures { servers, prefix, tasks, .. } = figures;
    let rate = figures.writes_per_second.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
    Text::from(vec![
        Line::from(in_line(&format!("pmcptask {prefix} at {}", servers.join(", ")))).bold(),
        Line::from(format!(
            "{} tasks  {} owners  {rate} writes/s  {} waiting clients  oldest unfinished {}",
            tasks.statuses.all(),
            tasks.owners,
            figures.info("waiting_clients"),
            age(tasks.oldest_unfinished_ms, now_ms),
        )),
    ])
}

fn age(created_ms: Option<i64>, now_ms: i64) -> String {
    created_ms.map_or_else(|| "-".to_owned(), |created| length(now_ms.saturating_sub(created)))
}

/// Three lists beside each other: tasks by status, what `INFO` counts, and what should be 0.
fn draw_counts(frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
    let columns = Layout::horizontal([
        Constraint::Fill(1),
        Constraint::Length(LONGEST_COUNTER),
        Constraint::Length(LONGEST_ALARM),
    ]);
    let [statuses, counters, alarms] = columns.areas(area);
    let named = figures.tasks.statuses.named().map(|(name, count)| counted(name, count, false));
    frame.render_widget(list("Tasks by status", named.into()), statuses);
    let named = COUNTERS.map(|name| counted(name, figures.info(name), false));
    frame.render_widget(list("INFO pmcptask", named.into()), counters);
    let named = ALARMS.map(|name| counted(name, figures.info(name), figures.info(name) > 0));
    frame.render_widget(list("Should be 0", named.into()), alarms);
}

fn counted(name: &'static str, count: u64, is_alarm: bool) -> Row<'static> {
    let style = if is_alarm { Style::new().fg(Color::Red).bold() } else { Style::new() };
    Row::new([Cell::from(name), Cell::from(right(&count.to_string()))]).style(style)
}

fn right(text: &str) -> Line<'static> {
    Line::from(text.to_owned()).right_aligned()
}

fn list(title: &'static str, rows: Vec<Row<'static>>) -> Table<'static> {
    Table::new(rows, [Constraint::Fill(1), Constraint::Length(11)]).block(Block::bordered().title(title))
}

fn owners_table(figures: &Figures, now_ms: i64) -> Table<'static> {
    let names = Statuses::default().named().map(|(name, _)| name);
    let headings = ["tasks"].into_iter().chain(names).chain(["oldest"]).map(|name| Cell::from(right(name)));
    let header = Row::new([Cell::from("owner")].into_iter().chain(headings)).bold();
    let rows = figures.tasks.top_owners.iter().map(|owner| owner_row(owner, now_ms));
    let widths = [Constraint::Fill(1)].into_iter();
    let widths = widths.chain([9, 9, 14, 9, 9, 9, 9, 6].map(Constraint::Length));
    let title = "Owners with most tasks, and the age of their oldest unfinished task";
    Table::new(rows, widths).header(header).block(Block::bordered().title(title))
}

fn owner_row(owner: &OwnerTotals, now_ms: i64) -> Row<'static> {
    let counts = [owner.statuses.all()].into_iter().chain(owner.statuses.named().map(|(_, count)| count));
    let cells = counts.map(|count| Cell::from(right(&count.to_string())));
    let age = Cell::from(right(&age(owner.oldest_unfinished_ms, now_ms)));
    Row::new([Cell::from(in_line(&owner.owner))].into_iter().chain(cells).chain([age]))
}

fn footing(figures: &Figures) -> Text<'static> {
    let walk = figures.walk;
    let of = match figures.walk_took_seconds {
        None => "the first walk, so there are more tasks than these".to_owned(),
        Some(seconds) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            format!(
                "the figures are of the walk before, which took {}",
                length(seconds.saturating_mul(1_000))
            )
        }
    };
    let progress = match walk.percent() {
        Some(0) | None if walk.keys_seen == 0 => "about to begin".to_owned(),
        None => format!("{} records read", walk.records_read),
        Some(percent) => format!("{percent} %, {} records read", walk.records_read),
    };
    let unread = match figures.tasks.owners_unread {
        0 => String::new(),
        owners => format!(", the tasks of {owners} owners could not be read"),
    };
    let progress = format!("walk through all tasks: {progress}{unread}; {of}");
    let last = match &figures.failure {
        Some(failure) => Line::from(in_line(failure)).fg(Color::Red),
        None => Line::from("q ends"),
    };
    Text::from(vec![Line::from(progress), last])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::figures::{Progress, Totals};
    use super::*;

    fn figures() -> Figures {
        let statuses = Statuses { working: 7, completed: 1_234, ..Statuses::default() };
        let owner = OwnerTotals { owner: "alice\u{1b}".to_owned(), statuses, oldest_unfinished_ms: Some(0) };
        let mut tasks = Totals::default();
        tasks.add(owner);
        let info = [("waiting_clients", 3), ("puts", 99), ("panics", 1)];
        Figures {
            servers: vec!["127.0.0.1:6379".to_owned()],
            prefix: "pmcp".to_owned(),
            writes_per_second: Some(45),
            info: BTreeMap::from(info.map(|(name, count)| (name.to_owned(), count))),
            tasks,
            walk: Progress { records_read: 500, keys_seen: 1_000, keys: 4_000 },
            walk_took_seconds: Some(120),
            failure: None,
        }
    }

    fn screen(figures: &Figures, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, figures, 7_200_000)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width));
        lines.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
    }

    fn has(screen: &[String], words: &[&str]) -> bool {
        screen.iter().any(|line| {
            let line = line.replace('│', " ");
            let line: Vec<_> = line.split_whitespace().collect();
            line.windows(words.len()).any(|window| window == words)
        })
    }

    #[test]
    fn screen_shows_owners_statuses_rates_and_how_far_the_walk_is() {
        let screen = screen(&figures(), 110, 24);
        for line in [
            "pmcptask pmcp at 127.0.0.1:6379",
            "1241 tasks 1 owners 45 writes/s 3 waiting clients oldest unfinished 2h",
            "completed 1234",
            "puts 99",
            "panics 1",
            "alice\\u001b 1241 7 0 1234 0 0 0 2h",
            "walk through all tasks: 25 %, 500 records read;",
            "the figures are of the walk before, which took 2m",
            "q ends",
        ] {
            assert!(has(&screen, &line.split(' ').collect::<Vec<_>>()), "{line}: {screen:#?}");
        }
    }

    #[test]
    fn failure_and_the_first_walk_are_told() {
        let failure = Some("no Redis server answers".to_owned());
        let screen = screen(&Figures { walk_took_seconds: None, failure, ..figures() }, 110, 24);
        for line in ["no Redis server answers", "there are more tasks than these"] {
            assert!(has(&screen, &line.split(' ').collect::<Vec<_>>()), "{line}: {screen:#?}");
        }
    }

    #[test]
    fn no_window_is_too_small() {
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            screen(&figures(), width, height);
        }
    }
}
