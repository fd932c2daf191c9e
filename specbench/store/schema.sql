-- What the store keeps: counts and seconds, one fact in one place. Ratios live in views.sql and nowhere else.
-- Keys are by convention, not by constraint: a run is deleted and inserted again in one transaction (ingest), which
-- DuckDB's eager unique indexes refuse, and an index over a million steps costs more than the steps.

CREATE TABLE IF NOT EXISTS meta (
    key VARCHAR NOT NULL,        -- 'schema_version', 'views_hash'
    value VARCHAR NOT NULL
);

-- One row per run: the manifest whole, and the columns people filter on.
CREATE TABLE IF NOT EXISTS runs (
    run_id VARCHAR NOT NULL,
    created VARCHAR NOT NULL,            -- ISO 8601, UTC
    state VARCHAR NOT NULL,              -- running | finished | interrupted | failed | lost | unknown, when it was ingested
    finished VARCHAR,                    -- ISO 8601, UTC; NULL while running or lost
    message VARCHAR NOT NULL,
    suite VARCHAR NOT NULL,
    suite_hash VARCHAR NOT NULL,
    template VARCHAR NOT NULL,
    num_questions INTEGER NOT NULL,      -- planned
    has_answers BOOLEAN NOT NULL,
    target VARCHAR NOT NULL,
    target_hash VARCHAR NOT NULL,
    model_type VARCHAR NOT NULL,
    num_parameters BIGINT NOT NULL,
    dtype VARCHAR NOT NULL,
    quantisation VARCHAR NOT NULL,
    weight_bytes_per_token BIGINT NOT NULL,
    cache_bytes_per_token BIGINT NOT NULL,
    device_kind VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    threads INTEGER NOT NULL,
    attention VARCHAR NOT NULL,
    execution VARCHAR NOT NULL DEFAULT 'operators', -- or 'graphs', 'graphs, one per phase'; ', compiled'
    copy_bandwidth DOUBLE,               -- bytes/s, read + write; NULL where not measured
    temperature DOUBLE NOT NULL,
    top_k INTEGER NOT NULL,
    top_p DOUBLE NOT NULL,
    min_p DOUBLE NOT NULL,
    repetition_penalty DOUBLE NOT NULL,
    rule VARCHAR NOT NULL,               -- coupled | rejection | typical
    seed BIGINT NOT NULL,
    batch_size INTEGER NOT NULL,
    repeats INTEGER NOT NULL,
    max_new_tokens INTEGER NOT NULL,
    carry VARCHAR NOT NULL,              -- none | stream
    stop VARCHAR[],                      -- strings that end an answer, each once and sorted: their order changes nothing
    num_groups INTEGER NOT NULL,         -- planned
    manifest JSON NOT NULL
);
ALTER TABLE runs ADD COLUMN IF NOT EXISTS execution VARCHAR DEFAULT 'operators'; -- schema 4
ALTER TABLE runs ADD COLUMN IF NOT EXISTS stop VARCHAR[]; -- schema 7: of runs from before, what their requests said
UPDATE runs
SET stop = list_sort(list_distinct(coalesce((manifest -> '$.provenance.request.stop')::VARCHAR[], [])))
WHERE stop IS NULL;

-- One row per competitor of a run, in the order of the manifest.
CREATE TABLE IF NOT EXISTS methods (
    run_id VARCHAR NOT NULL,
    method VARCHAR NOT NULL,             -- the label, unique in the run
    position INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    title VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,               -- baseline | chain | tree
    options JSON NOT NULL,
    num_parameters BIGINT NOT NULL,
    weights_hash VARCHAR NOT NULL,
    is_control BOOLEAN NOT NULL,
    is_ranked BOOLEAN NOT NULL,          -- false: a control such as oracle, shown and never ranked
    notes VARCHAR[] NOT NULL
);
ALTER TABLE methods ADD COLUMN IF NOT EXISTS is_ranked BOOLEAN DEFAULT true; -- the first stores of schema 1 lack it

CREATE TABLE IF NOT EXISTS questions (
    run_id VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    category VARCHAR NOT NULL,
    num_turns INTEGER NOT NULL,
    prompt_hash VARCHAR NOT NULL
);

-- One answer of the untimed pass that equality is judged against.
CREATE TABLE IF NOT EXISTS reference_answers (
    run_id VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    turn INTEGER NOT NULL,
    num_prompt_tokens INTEGER NOT NULL,
    tokens INTEGER[] NOT NULL,
    text VARCHAR NOT NULL,
    finish_reason VARCHAR NOT NULL
);

-- One timed decode of one or more sequences: seconds belong here. Only the last complete attempt is kept.
CREATE TABLE IF NOT EXISTS groups (
    run_id VARCHAR NOT NULL,
    group_id INTEGER NOT NULL,
    method VARCHAR NOT NULL,
    turn INTEGER NOT NULL,
    repeat INTEGER NOT NULL,
    unit VARCHAR NOT NULL,               -- what pairs across methods: the question id; at batch > 1 the ids joined by '|'
    category VARCHAR NOT NULL,           -- 'mixed' where the rows of a group differ
    num_rows INTEGER NOT NULL,           -- planned
    num_finished INTEGER NOT NULL,
    num_failed INTEGER NOT NULL,
    prefill_s DOUBLE NOT NULL,
    decode_s DOUBLE NOT NULL,
    total_s DOUBLE NOT NULL,
    draft_s DOUBLE NOT NULL,
    verify_s DOUBLE NOT NULL,
    accept_s DOUBLE NOT NULL,
    commit_s DOUBLE NOT NULL,
    journal_s DOUBLE NOT NULL,
    began_s DOUBLE                       -- Unix time; NULL where the journal does not say (schema 1)
);
ALTER TABLE groups ADD COLUMN IF NOT EXISTS began_s DOUBLE;

-- One finished answer: tokens belong here.
CREATE TABLE IF NOT EXISTS generations (
    run_id VARCHAR NOT NULL,
    group_id INTEGER NOT NULL,
    row_index INTEGER NOT NULL,
    method VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    category VARCHAR NOT NULL,
    turn INTEGER NOT NULL,
    repeat INTEGER NOT NULL,
    num_prompt_tokens INTEGER NOT NULL,
    num_new_tokens INTEGER NOT NULL,     -- the prefill's token included
    num_steps INTEGER NOT NULL,
    finish_reason VARCHAR NOT NULL,
    equality VARCHAR,                    -- identical | tie | numeric | bug; NULL where the rule promises none
    first_difference INTEGER,
    gap DOUBLE,
    correct BOOLEAN,
    tokens INTEGER[] NOT NULL,
    text VARCHAR NOT NULL
);

-- One draft/verify/accept/commit round of one sequence. Token ids are in generations.tokens:
-- the first belongs to the prefill, then num_committed - num_truncated per step in order.
CREATE TABLE IF NOT EXISTS steps (
    run_id VARCHAR NOT NULL,
    group_id INTEGER NOT NULL,
    row_index INTEGER NOT NULL,
    step INTEGER NOT NULL,
    end_s DOUBLE NOT NULL,               -- since the group's start
    num_nodes INTEGER NOT NULL,          -- root excluded
    depth INTEGER NOT NULL,              -- longest proposed path, root excluded
    num_accepted INTEGER NOT NULL,       -- bonus excluded, before truncation
    num_committed INTEGER NOT NULL,      -- num_accepted + 1, before truncation
    num_truncated INTEGER NOT NULL,
    ranks USMALLINT[] NOT NULL,          -- of each accepted node among its siblings, 0-based
    draft_s DOUBLE NOT NULL,             -- phase seconds stand on the first live row of a batched step
    verify_s DOUBLE NOT NULL,
    accept_s DOUBLE NOT NULL,
    commit_s DOUBLE NOT NULL
);

-- One question that could not be answered: an error, never a number.
CREATE TABLE IF NOT EXISTS failures (
    run_id VARCHAR NOT NULL,
    group_id INTEGER NOT NULL,
    row_index INTEGER NOT NULL,
    method VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    category VARCHAR NOT NULL,
    turn INTEGER NOT NULL,
    repeat INTEGER NOT NULL,
    error VARCHAR NOT NULL
);

-- A named reading of the machine or the engine, in the order it was taken.
CREATE TABLE IF NOT EXISTS measurements (
    run_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    unit VARCHAR NOT NULL,
    method VARCHAR NOT NULL,             -- '' where it belongs to the whole run
    detail VARCHAR NOT NULL DEFAULT ''   -- why, where the number alone does not say
);
ALTER TABLE measurements ADD COLUMN IF NOT EXISTS detail VARCHAR DEFAULT ''; -- schema 4

-- What watched the machine: one row per start of the run.
CREATE TABLE IF NOT EXISTS device_sampler (
    run_id VARCHAR NOT NULL,
    at_s DOUBLE NOT NULL,                -- Unix time
    interval_s DOUBLE NOT NULL,          -- wanted
    num_cpus INTEGER NOT NULL,           -- that the run may use
    governor VARCHAR,
    gpu_missing VARCHAR                  -- why the GPU in use was not watched; NULL where it was, or none was in use
);

-- The machine's state, about once a second. CPU seconds are of all cores together, since the sample before.
CREATE TABLE IF NOT EXISTS device_sample (
    run_id VARCHAR NOT NULL,
    at_s DOUBLE NOT NULL,                -- Unix time of the sample's end
    interval_s DOUBLE NOT NULL,
    num_cpus INTEGER NOT NULL,
    busy_s DOUBLE NOT NULL,              -- everything, stolen time included
    own_s DOUBLE NOT NULL,               -- the run's process
    sampler_s DOUBLE NOT NULL,           -- the sampler itself
    load_average DOUBLE NOT NULL,        -- over the last minute
    available_bytes BIGINT NOT NULL,
    num_threads INTEGER NOT NULL,        -- of the run's process
    cpu_mhz DOUBLE,                      -- of the core the run was on; NULL where not readable
    throttle_reasons VARCHAR[] NOT NULL, -- of CPU and GPU; empty: full speed
    top_others JSON,                     -- [[name, CPU seconds since the last look], ...]; NULL between looks
    gpu_mhz DOUBLE,
    gpu_memory_mhz DOUBLE,
    gpu_temperature_c DOUBLE,
    gpu_power_w DOUBLE,
    gpu_use DOUBLE,                      -- share of the last moments with a kernel running
    num_gpu_processes INTEGER            -- the run's own included
);

-- What the GPU in use drew while a group was timed, by its own counter, read just before and just after.
CREATE TABLE IF NOT EXISTS group_energy (
    run_id VARCHAR NOT NULL,
    group_id INTEGER NOT NULL,
    joules DOUBLE NOT NULL,              -- of the whole card
    window_s DOUBLE NOT NULL             -- between the two readings
);

-- What verification showed of a method that learns: a drafted position up to and including its step's first rejection.
-- Sampled (per_answer), and of finished answers only; whose they are is in generations.
CREATE TABLE IF NOT EXISTS observed (
    run_id VARCHAR NOT NULL,
    group_id INTEGER NOT NULL,
    row_index INTEGER NOT NULL,
    domain VARCHAR NOT NULL,             -- '' where one adapter is for all prompts
    version INTEGER NOT NULL,            -- of the adapter that drafted it; 0 = the draft model itself
    position INTEGER NOT NULL,           -- in the text, prompt included
    depth INTEGER NOT NULL,              -- 1 = the first drafted token of its step
    is_accepted BOOLEAN NOT NULL,
    overlap DOUBLE NOT NULL              -- sum min(p, q) over the vocabulary at temperature 1
);

-- Rounds of learning and ways back, in the order of the journal.
CREATE TABLE IF NOT EXISTS adapter_rounds (
    run_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    group_id INTEGER NOT NULL,           -- after this group's answers
    method VARCHAR NOT NULL,
    domain VARCHAR NOT NULL,
    outcome VARCHAR NOT NULL,            -- promoted | kept | dropped | rolled back
    why VARCHAR NOT NULL,
    version INTEGER NOT NULL,            -- drafted with from here on
    previous INTEGER NOT NULL,           -- drafted with until here: of a promoted version its parent
    seconds DOUBLE NOT NULL,             -- learning, judging, writing
    num_steps INTEGER NOT NULL,
    num_positions INTEGER NOT NULL,      -- new ones since the round before
    num_held_out INTEGER NOT NULL,       -- answers it was judged on
    acceptance_before DOUBLE,            -- expected, on held-out positions; NULL where nothing was judged
    acceptance_after DOUBLE,
    gain_low DOUBLE,                     -- 95 % interval of after - before
    gain_high DOUBLE,
    is_concurrent BOOLEAN NOT NULL,
    is_regrown BOOLEAN NOT NULL,         -- of a resumed run: the stream until its interruption, decoded again untimed
    width_before DOUBLE,                 -- acceptance_before is an upper bound, at most so far above; 0 at temperature 0
    width_after DOUBLE
);
ALTER TABLE adapter_rounds ADD COLUMN IF NOT EXISTS width_before DOUBLE; -- schema 6
ALTER TABLE adapter_rounds ADD COLUMN IF NOT EXISTS width_after DOUBLE; -- schema 6

-- Other people's answer files: shown beside measured rows, never ranked with them.
CREATE TABLE IF NOT EXISTS external_imports (
    import_id VARCHAR NOT NULL,          -- from the two files' hashes and the three names: importing twice replaces
    imported VARCHAR NOT NULL,           -- ISO 8601, UTC
    suite VARCHAR NOT NULL,
    target VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    model_id VARCHAR NOT NULL,           -- as written in the file; often not the file's name
    source VARCHAR NOT NULL,             -- file name
    source_hash VARCHAR NOT NULL,
    baseline_source VARCHAR,             -- file name; NULL without a baseline file
    baseline_hash VARCHAR,
    notes VARCHAR[] NOT NULL             -- every defect survived, in words
);

-- One turn of one answer in such a file.
CREATE TABLE IF NOT EXISTS external_turns (
    import_id VARCHAR NOT NULL,
    is_baseline BOOLEAN NOT NULL,
    question_id VARCHAR NOT NULL,
    category VARCHAR NOT NULL,           -- '' where the file has none
    choice INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    num_steps INTEGER NOT NULL,
    num_new_tokens INTEGER NOT NULL,     -- as that tool counted them; may include tokens past the stop
    tokens_are_estimated BOOLEAN NOT NULL,
    wall_s DOUBLE NOT NULL,              -- prefill and everything else included
    text VARCHAR NOT NULL
);

-- One row per training (`specbench train`); its folder holds train.json in place of manifest.json.
CREATE TABLE IF NOT EXISTS train_runs (
    run_id VARCHAR NOT NULL,
    created VARCHAR NOT NULL,            -- ISO 8601, UTC
    state VARCHAR NOT NULL,              -- as in runs
    finished VARCHAR,
    message VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    target VARCHAR NOT NULL,
    target_hash VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    dataset_hash VARCHAR NOT NULL,       -- over every token and label
    num_parameters BIGINT NOT NULL,      -- of the drafter
    device_kind VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    num_processes INTEGER NOT NULL,
    seed BIGINT NOT NULL,
    record JSON NOT NULL                 -- train.json
);

-- One optimiser step.
CREATE TABLE IF NOT EXISTS train_steps (
    run_id VARCHAR NOT NULL,
    step INTEGER NOT NULL,               -- steps done, this one included
    epoch DOUBLE NOT NULL,
    num_tokens BIGINT NOT NULL,          -- text tokens read so far
    seconds DOUBLE NOT NULL,             -- of training so far
    num_anchors BIGINT NOT NULL,
    loss DOUBLE NOT NULL,                -- per anchor
    lr DOUBLE NOT NULL,
    grad_norm DOUBLE NOT NULL            -- before clipping
);

-- One evaluation on held-out documents; lists are by depth, from 0.
CREATE TABLE IF NOT EXISTS train_evals (
    run_id VARCHAR NOT NULL,
    step INTEGER NOT NULL,
    num BIGINT[] NOT NULL,               -- labels
    loss DOUBLE[] NOT NULL,              -- summed over labels
    correct BIGINT[][] NOT NULL,         -- [depth][r]: labels among the first r + 1 choices
    whole BIGINT[] NOT NULL,             -- anchors whose labels up to this depth all exist
    right_ BIGINT[] NOT NULL,            -- those whose first choices up to this depth are all right
    num_steps BIGINT NOT NULL,           -- of the simulated run; 0 = none was made
    num_new_tokens BIGINT NOT NULL,
    accepted_at BIGINT[] NOT NULL,       -- steps with at least depth + 1 accepted
    proposed_at BIGINT[] NOT NULL,
    seconds DOUBLE NOT NULL,
    is_best BOOLEAN NOT NULL
);
