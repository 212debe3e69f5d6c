//! Measuring this machine.

use crate::program::Workplace;

#[test]
fn a_row_is_measured_beside_the_limits_of_the_machine() {
    let report = Workplace::new().json(&["bench", "--rows", "attention_1024", "--repetitions", "2", "--json"]);
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["row"].as_str().unwrap()).collect();
    assert_eq!(names, ["peak_multiply_add", "peak_triad", "peak_read", "attention_1024"]);
    for row in rows {
        assert_eq!(row["samples_ms"].as_array().unwrap().len(), 2, "{row}");
        assert!(row["median_ms"].as_f64().unwrap() > 0.0 && row["failure"].is_null(), "{row}");
    }
    let share = rows[3]["share_of_limit"].as_f64().unwrap();
    assert!(share > 0.0 && rows[3]["bound_by"] == "arithmetic", "{report}");
    assert!(report["limits"]["gflop_per_second"].as_f64().unwrap() > 0.0 && report["limits"]["gbyte_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn rows_are_listed() {
    let listed = Workplace::new().succeed(&["bench", "--list"]);
    assert!(["A", "B", "C_batch_1", "C_batch_8", "A_size_512"].iter().all(|row| listed.lines().any(|line| line == *row)), "{listed}");
}
