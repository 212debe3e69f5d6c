//! Exit status 0: done; 1: failed; 2: wrong use. Every failure is one message on stderr.

use smalti_pipeline::PipelineError;
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

/// Flags that cannot be obeyed, found after they were parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUse(pub String);

/// Runs the program and says how it went.
pub fn exit_code(program: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    // Panics that are caught (a decoder given a broken picture) are not worth a line; one that ends the program is reported below, with its place.
    let place = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&place);
    panic::set_hook(Box::new(move |information| {
        if let (Ok(mut place), Some(location)) = (seen.lock(), information.location()) {
            *place = Some(location.to_string());
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(program)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            smalti_train::say!("error: {}", with_causes(&error));
            if is_wrong_use(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
        Err(panic) => {
            let place = place.lock().ok().and_then(|place| place.clone()).unwrap_or_else(|| "an unknown place".to_string());
            smalti_train::say!(
                "error: the program went wrong at {place}: {}; hint: this is a fault of smalti, please report it with the command",
                message(&*panic)
            );
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, each said once: many messages end with their cause already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_wrong_use(error: &anyhow::Error) -> bool {
    error.is::<WrongUse>() || error.downcast_ref::<PipelineError>().is_some_and(PipelineError::is_wrong_request)
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_are_said_once() {
        let error = Err::<(), _>(std::io::Error::other("disk on fire")).context("a.png: disk on fire").context("sheet").unwrap_err();
        assert_eq!(with_causes(&error), "sheet: a.png: disk on fire");
    }
}
