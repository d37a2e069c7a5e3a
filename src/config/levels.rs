//! The language of `log.level`: a level, and levels of single parts of the program.

use tracing::level_filters::LevelFilter;

/// One part of `log.level`: a level for everything (`None`), or for one target and what lies under it.
pub type LevelRule<'a> = (Option<&'a str>, LevelFilter);

/// Reads `info`, or `info,herenow::relay=debug`. A word that is no level is refused: to `tracing` it would be a target, at full volume.
pub fn level_rules(text: &str) -> Option<Vec<LevelRule<'_>>> {
    text.split(',').map(|part| rule(part.trim())).collect()
}

fn rule(part: &str) -> Option<LevelRule<'_>> {
    match part.split_once('=') {
        None => Some((None, level(part)?)),
        Some((target, word)) => (!target.is_empty()).then_some((Some(target), level(word)?)),
    }
}

fn level(word: &str) -> Option<LevelFilter> {
    // `tracing` takes nothing (`error`) and digits (5 is the loudest) too: nobody guesses that.
    let is_word = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic());
    is_word.then(|| word.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_and_targets_have_a_level() {
        assert_eq!(level_rules("info"), Some(vec![(None, LevelFilter::INFO)]));
        assert_eq!(
            level_rules("WARN, herenow::relay=debug"),
            Some(vec![(None, LevelFilter::WARN), (Some("herenow::relay"), LevelFilter::DEBUG)])
        );
        assert_eq!(level_rules("off"), Some(vec![(None, LevelFilter::OFF)]));
        for wrong in ["", "infoo", "5", "info,", "=info", "herenow=", "herenow=loud", "herenow"] {
            assert_eq!(level_rules(wrong), None, "{wrong:?}");
        }
    }
}
