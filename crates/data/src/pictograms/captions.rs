//! Several captions for one picture, from the templates of the recipe.

use sha2::{Digest, Sha256};

use super::labels::Meaning;

/// What a template may contain.
pub(super) const PLACEHOLDERS: [&str; 4] = ["{label}", "{a_label}", "{keywords}", "{style}"];
/// Keywords in one caption: enough to add meaning, few enough to stay a caption.
const KEYWORD_COUNT: usize = 3;

/// The first `{...}` that is not a placeholder.
pub(super) fn unknown_placeholder(template: &str) -> Option<String> {
    template.match_indices('{').find_map(|(start, _)| {
        let found = template[start..].find('}').map_or(&template[start..], |end| &template[start..=start + end]);
        (!PLACEHOLDERS.contains(&found)).then(|| found.to_owned())
    })
}

/// One caption for each template, each different caption once. A template with `{keywords}` is passed over where there are none.
pub(super) fn write(templates: &[String], meaning: &Meaning, style: &str) -> Vec<String> {
    let label = spoken(&meaning.label);
    let mut captions: Vec<String> = Vec::new();
    for template in templates {
        let keywords = chosen_keywords(template, meaning, style);
        if template.contains("{keywords}") && keywords.is_empty() {
            continue;
        }
        let caption = template
            .replace("{label}", &label)
            .replace("{a_label}", &with_article(&label))
            .replace("{keywords}", &keywords.join(", "))
            .replace("{style}", style);
        if !captions.contains(&caption) {
            captions.push(caption);
        }
    }
    captions
}

/// Other keywords for other styles and templates of the same concept, the same ones at every build.
fn chosen_keywords<'a>(template: &str, meaning: &'a Meaning, style: &str) -> Vec<&'a str> {
    let mut ranked: Vec<([u8; 32], &str)> =
        meaning.keywords.iter().map(|word| (Sha256::digest(format!("{template}\n{}\n{style}\n{word}", meaning.label)).into(), word.as_str())).collect();
    ranked.sort();
    ranked.into_iter().take(KEYWORD_COUNT).map(|(_, word)| word).collect()
}

/// As one would say it: `flag: Japan` -> `flag of Japan`, `waving hand: dark skin tone` -> `waving hand with dark skin tone`.
fn spoken(label: &str) -> String {
    let label = label.replace('’', "'").replace(['“', '”'], "");
    match label.split_once(": ") {
        None => label,
        Some(("flag", country)) => format!("flag of {country}"),
        Some(("keycap", key)) => format!("keycap {key}"),
        Some((who, "bald")) => format!("bald {who}"),
        Some((who, what)) => {
            let (facing, parts): (Vec<&str>, Vec<&str>) = what.split(", ").partition(|part| part.starts_with("facing"));
            let direction: String = facing.iter().map(|part| format!(" {part}")).collect();
            match parts.as_slice() {
                [] => format!("{who}{direction}"),
                [one] => format!("{who}{direction} with {one}"),
                [first, second] => format!("{who}{direction} with {first} and {second}"),
                many => format!("{who}{direction} with {}", many.join(", ")),
            }
        }
    }
}

/// `a red fox`, `an owl`; plurals, names and times of day without: `glasses`, `Aries`, `six o'clock`.
fn with_article(label: &str) -> String {
    let first = label.split(' ').next().unwrap_or_default();
    let head = label.split(" with ").next().unwrap_or_default().split(" of ").next().unwrap_or_default();
    let last = head.rsplit(' ').next().unwrap_or_default();
    let plural = (last.ends_with('s') && !last.ends_with("ss") && !last.ends_with("us") && !last.ends_with("is"))
        || ["people", "men", "women", "children", "feet", "teeth"].contains(&last);
    let proper = label.split(' ').count() == 1 && label.starts_with(char::is_uppercase) || last == "o'clock" || last == "thirty" || first == "keycap";
    if label.is_empty() || plural || proper || ["the", "a", "an"].contains(&first.to_lowercase().as_str()) {
        return label.to_owned();
    }
    let sound = first.to_lowercase();
    let vowel = match sound.as_str() {
        "hour" | "hourglass" => true,
        word if word.starts_with("uni") || word.starts_with("use") || word.starts_with("ufo") || word.starts_with("euro") || word.starts_with("one") => false,
        word => word.starts_with(['a', 'e', 'i', 'o', 'u']),
    };
    format!("{} {label}", if vowel { "an" } else { "a" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_spoken_with_the_right_article() {
        for (label, expected) in [
            ("fox", "a fox"),
            ("owl", "an owl"),
            ("unicorn", "a unicorn"),
            ("hourglass done", "an hourglass done"),
            ("flag: Japan", "a flag of Japan"),
            ("flag: United States", "a flag of United States"),
            ("waving hand: dark skin tone", "a waving hand with dark skin tone"),
            ("woman: medium skin tone, red hair", "a woman with medium skin tone and red hair"),
            ("man: bald", "a bald man"),
            ("glasses", "glasses"),
            ("cactus", "a cactus"),
            ("women with bunny ears: light skin tone", "women with bunny ears with light skin tone"),
            ("woman kneeling: medium skin tone, facing right", "a woman kneeling facing right with medium skin tone"),
            ("kiss: man, man, dark skin tone", "a kiss with man, man, dark skin tone"),
            ("keycap: 8", "keycap 8"),
            ("six o’clock", "six o'clock"),
            ("Aries", "Aries"),
            ("woman’s boot", "a woman's boot"),
        ] {
            assert_eq!(with_article(&spoken(label)), expected);
        }
    }

    #[test]
    fn templates_without_keywords_are_passed_over_and_repeats_dropped() {
        let meaning = Meaning { label: "fox".into(), concept: "fox".into(), has_tone: false, keywords: Vec::new() };
        let templates = ["{a_label}, {style} style".to_owned(), "{keywords}".to_owned(), "{a_label}, {style} style".to_owned()];
        assert_eq!(write(&templates, &meaning, "noto"), ["a fox, noto style"]);
    }

    #[test]
    fn unknown_placeholders_are_found() {
        assert_eq!(unknown_placeholder("{a_label} in {colour}"), Some("{colour}".into()));
        assert_eq!(unknown_placeholder("{label"), Some("{label".into()));
        assert_eq!(unknown_placeholder("{label}, {style}"), None);
    }
}
