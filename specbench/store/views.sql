-- Every ratio of specbench, once. Tables hold counts and seconds; whoever shows a number reads it from here, except
-- intervals, geometric means and Leviathan's formula, which are in metrics.py.
--
-- In views with a `category` column, NULL stands for all categories pooled.
-- A group is timed when every planned row of it finished: failures are counted, never averaged in.

-- The method the others are divided by: autoregression under its own name, not its A/A control.
CREATE OR REPLACE VIEW baselines AS
SELECT run_id, arg_min(method, position) AS method
FROM methods
WHERE kind = 'baseline' AND NOT is_control
GROUP BY run_id;

-- num_decode_tokens: the prefill's token of each row belongs to no step and to no decode second.
CREATE OR REPLACE VIEW timed_groups AS
SELECT
    g.*,
    t.num_new_tokens,
    t.num_decode_tokens,
    t.num_steps
FROM groups AS g
JOIN (
    SELECT
        run_id,
        group_id,
        sum(num_new_tokens)::BIGINT AS num_new_tokens,
        sum(num_new_tokens - 1)::BIGINT AS num_decode_tokens,
        sum(num_steps)::BIGINT AS num_steps
    FROM generations
    GROUP BY run_id, group_id
) AS t USING (run_id, group_id)
WHERE g.num_finished = g.num_rows;

-- What others took of the CPUs, sample by sample.
CREATE OR REPLACE VIEW device_load AS
SELECT
    *,
    greatest(0.0, busy_s - own_s - sampler_s) AS others_s,
    others_s / (num_cpus * interval_s) AS others_share,
    len(throttle_reasons) > 0 AS is_throttled
FROM device_sample;

-- A timed group and the samples that overlap it: running sums up to the last that began before its end, minus those up
-- to the last that ended before its beginning (a plain join over ten hours of samples takes ten times as long).
-- Crowded: other processes took more than busy_limit of all CPUs. Flags only; no measurement is dropped for them.
CREATE OR REPLACE VIEW watched_groups AS
WITH sums AS (
    SELECT
        run_id,
        at_s,
        at_s - interval_s AS start_s,
        count(*) OVER upto AS num_samples,
        sum(others_s) OVER upto AS others_s,
        sum(num_cpus * interval_s) OVER upto AS cpus_s,
        sum(is_throttled::INTEGER) OVER upto AS num_throttled
    FROM device_load
    WINDOW upto AS (PARTITION BY run_id ORDER BY at_s)
)
SELECT
    g.run_id,
    g.group_id,
    g.method,
    g.unit,
    g.began_s,
    coalesce(till.num_samples, 0) - coalesce(since.num_samples, 0) AS num_samples,
    (till.others_s - coalesce(since.others_s, 0)) / nullif(till.cpus_s - coalesce(since.cpus_s, 0), 0) AS others_share,
    0.1::DOUBLE AS busy_limit,
    coalesce(others_share > busy_limit, false) AS is_crowded,
    coalesce(till.num_throttled > coalesce(since.num_throttled, 0), false) AS is_throttled
FROM timed_groups AS g
ASOF LEFT JOIN sums AS since ON since.run_id = g.run_id AND since.at_s <= g.began_s
ASOF LEFT JOIN sums AS till ON till.run_id = g.run_id AND till.start_s < g.began_s + g.total_s;

-- How much of a run was measured on a machine that was not its own.
CREATE OR REPLACE VIEW device_flags AS
SELECT
    run_id,
    max(busy_limit) AS busy_limit,
    count(DISTINCT unit) AS num_units,
    count(*) AS num_groups,
    count(began_s) AS num_dated,
    count(*) FILTER (num_samples > 0) AS num_watched,
    count(DISTINCT unit) FILTER (is_crowded) AS num_crowded_units,
    count(*) FILTER (is_crowded) AS num_crowded_groups,
    count(DISTINCT unit) FILTER (is_throttled) AS num_throttled_units,
    count(*) FILTER (is_throttled) AS num_throttled_groups
FROM watched_groups
GROUP BY run_id;

-- Joules a token, over the timed groups whose two readings were taken where they began and ended: of a sampler that
-- was kept waiting the reading belongs to something else, and is left out.
CREATE OR REPLACE VIEW energy AS
SELECT
    g.run_id,
    g.method,
    count(*) AS num_groups,
    sum(e.joules) AS joules,
    sum(e.window_s) AS window_s,
    sum(e.joules) / sum(g.num_new_tokens) AS joules_per_token
FROM timed_groups AS g
JOIN group_energy AS e USING (run_id, group_id)
WHERE abs(e.window_s - g.total_s) <= 0.05 + 0.05 * g.total_s
GROUP BY g.run_id, g.method;

-- Sums over timed groups. other_s: wall clock that no phase claims.
-- acceptance_length: tokens kept per step, bonus included; what lies beyond a stop is not counted.
CREATE OR REPLACE VIEW totals AS
SELECT
    run_id,
    method,
    category,
    count(*) AS num_groups,
    sum(num_rows)::BIGINT AS num_generations,
    count(DISTINCT unit) AS num_units,
    count(DISTINCT repeat) AS num_repeats,
    sum(num_new_tokens)::BIGINT AS num_new_tokens,
    sum(num_decode_tokens)::BIGINT AS num_decode_tokens,
    sum(num_steps)::BIGINT AS num_steps,
    sum(prefill_s) AS prefill_s,
    sum(draft_s) AS draft_s,
    sum(verify_s) AS verify_s,
    sum(accept_s) AS accept_s,
    sum(commit_s) AS commit_s,
    sum(total_s) - sum(prefill_s) - sum(draft_s) - sum(verify_s) - sum(accept_s) - sum(commit_s) AS other_s,
    sum(decode_s) AS decode_s,
    sum(total_s) AS total_s,
    sum(journal_s) AS journal_s,
    sum(num_new_tokens) / sum(total_s) AS tokens_per_s,
    sum(num_decode_tokens) / nullif(sum(num_steps), 0) AS acceptance_length,
    sum(journal_s) / sum(total_s) AS journal_share
FROM timed_groups
GROUP BY GROUPING SETS ((run_id, method), (run_id, method, category));

-- The mean of the categories' acceptance lengths, each category once however long its answers. By the categories of the
-- answers: a group of several rows may hold more than one.
CREATE OR REPLACE VIEW acceptance_macro AS
WITH categories AS (
    SELECT
        g.run_id,
        g.method,
        g.category,
        sum(g.num_new_tokens - 1) / nullif(sum(g.num_steps), 0) AS acceptance_length
    FROM generations AS g
    SEMI JOIN timed_groups AS t ON t.run_id = g.run_id AND t.group_id = g.group_id
    GROUP BY g.run_id, g.method, g.category
)
SELECT run_id, method, avg(acceptance_length) AS acceptance_length_macro
FROM categories
GROUP BY run_id, method;

-- A method's timed group beside the baseline's of the same unit (a question; at batch > 1 a group of questions), turn and
-- repeat. All such cells of a unit or none: a unit is a method's only where it finished every cell that the baseline
-- finished. Two methods that have a unit then have the same cells of it, and whoever fails an answer on which drafting
-- pays little does not gain by it.
CREATE OR REPLACE VIEW paired_cells AS
WITH base AS (
    SELECT t.*, count(*) OVER (PARTITION BY t.run_id, t.unit) AS num_cells
    FROM timed_groups AS t
    JOIN baselines USING (run_id, method)
)
SELECT
    m.run_id, m.method, m.unit, m.category, m.turn, m.repeat,
    m.num_new_tokens, m.num_decode_tokens, m.num_steps, m.total_s, m.decode_s,
    m.draft_s, m.verify_s, m.accept_s, m.commit_s,
    b.num_new_tokens AS base_num_new_tokens,
    b.num_decode_tokens AS base_num_decode_tokens,
    b.total_s AS base_total_s,
    b.decode_s AS base_decode_s
FROM timed_groups AS m
JOIN base AS b ON b.run_id = m.run_id AND b.unit = m.unit AND b.turn = m.turn AND b.repeat = m.repeat
QUALIFY count(*) OVER (PARTITION BY m.run_id, m.method, m.unit) = b.num_cells;

-- What is in none of a method's ratios although one side finished it. num_units: units that the baseline has and the
-- method not as far; of them num_failed_units, in which a generation of the method's failed (in the others the run did
-- not come to the end). num_lone_cells: cells that the method finished and the baseline failed.
CREATE OR REPLACE VIEW unpaired AS
WITH base AS (
    SELECT g.* FROM groups AS g JOIN baselines USING (run_id, method)
),
units AS (
    SELECT
        m.run_id,
        m.method,
        b.unit,
        count(*) FILTER (b.num_failed = 0) AS num_cells,
        count(*) FILTER (b.num_failed = 0 AND g.num_failed = 0) AS num_pairs,
        count(*) FILTER (b.num_failed = 0 AND g.num_failed > 0) AS num_failed,
        count(*) FILTER (b.num_failed > 0 AND g.num_failed = 0) AS num_lone
    FROM methods AS m
    JOIN base AS b USING (run_id)
    LEFT JOIN groups AS g
        ON g.run_id = m.run_id AND g.method = m.method
        AND g.unit = b.unit AND g.turn = b.turn AND g.repeat = b.repeat
    GROUP BY m.run_id, m.method, b.unit
)
SELECT
    run_id,
    method,
    count(*) FILTER (num_pairs < num_cells) AS num_units,
    count(*) FILTER (num_pairs < num_cells AND num_failed > 0) AS num_failed_units,
    sum(num_lone)::BIGINT AS num_lone_cells
FROM units
GROUP BY run_id, method;

-- One unit, its turns and repeats pooled, method beside baseline. turns: of every pooled cell, ascending.
CREATE OR REPLACE VIEW unit_pairs AS
SELECT
    run_id,
    method,
    unit,
    category,
    list(turn ORDER BY turn) AS turns,
    sum(num_new_tokens)::BIGINT AS num_new_tokens,
    sum(num_decode_tokens)::BIGINT AS num_decode_tokens,
    sum(num_steps)::BIGINT AS num_steps,
    sum(total_s) AS total_s,
    sum(decode_s) AS decode_s,
    sum(base_num_new_tokens)::BIGINT AS base_num_new_tokens,
    sum(base_num_decode_tokens)::BIGINT AS base_num_decode_tokens,
    sum(base_total_s) AS base_total_s,
    sum(base_decode_s) AS base_decode_s,
    sum(total_s) / sum(num_new_tokens) AS seconds_per_token,
    sum(base_total_s) / sum(base_num_new_tokens) AS base_seconds_per_token,
    (sum(base_total_s) / sum(base_num_new_tokens)) / (sum(total_s) / sum(num_new_tokens)) AS speedup
FROM paired_cells
GROUP BY run_id, method, unit, category;

-- Where a step goes, in seconds per sequence-step, and what that leaves of the acceptance length (NULL without steps):
--   speedup_decode = acceptance_length * ar_s / step_s,   step_s = draft_s + verify_s + accept_s + commit_s + other_s
-- ar_s: the baseline's decode seconds per token. bound_speedup: what draft and verify alone would allow.
CREATE OR REPLACE VIEW waterfall AS
WITH sums AS (
    SELECT
        run_id,
        method,
        category,
        nullif(sum(num_steps), 0) AS num_steps,
        sum(num_decode_tokens) AS num_decode_tokens,
        sum(base_decode_s) / nullif(sum(base_num_decode_tokens), 0) AS ar_s,
        nullif(sum(decode_s), 0) AS decode_s,
        sum(draft_s) AS draft_s,
        sum(verify_s) AS verify_s,
        sum(accept_s) AS accept_s,
        sum(commit_s) AS commit_s,
        (sum(base_total_s) / sum(base_num_new_tokens)) / (sum(total_s) / sum(num_new_tokens)) AS speedup_total
    FROM paired_cells
    GROUP BY GROUPING SETS ((run_id, method), (run_id, method, category))
)
SELECT
    run_id,
    method,
    category,
    speedup_total,
    num_decode_tokens / num_steps AS acceptance_length,
    ar_s,
    draft_s / num_steps AS draft_s,
    verify_s / num_steps AS verify_s,
    accept_s / num_steps AS accept_s,
    commit_s / num_steps AS commit_s,
    (decode_s - draft_s - verify_s - accept_s - commit_s) / num_steps AS other_s,
    decode_s / num_steps AS step_s,
    (decode_s - draft_s - verify_s - accept_s - commit_s) / decode_s AS other_share,
    ar_s * num_decode_tokens / decode_s AS speedup_decode,
    ar_s * num_steps / decode_s AS efficiency,
    ar_s * num_decode_tokens / nullif(draft_s + verify_s, 0) AS bound_speedup
FROM sums;

-- Steps of timed groups by what acceptance needs of them. cut_depth: tokens kept of a truncated step (all of them
-- accepted draft tokens), NULL where nothing was cut.
CREATE OR REPLACE VIEW step_histogram AS
SELECT
    s.run_id,
    g.method,
    g.category,
    s.depth,
    least(s.num_accepted, s.num_committed - s.num_truncated) AS num_accepted,
    CASE WHEN s.num_truncated > 0 THEN s.num_committed - s.num_truncated END AS cut_depth,
    count(*) AS num_steps
FROM steps AS s
JOIN generations AS g USING (run_id, group_id, row_index)
SEMI JOIN timed_groups AS t ON t.run_id = s.run_id AND t.group_id = s.group_id
GROUP BY ALL;

-- depth counts from 1; for trees "accepted at depth k" means that some node was. A truncated step leaves every
-- denominator beyond its cut.
--   conditional = P(k accepted | k-1 accepted, k proposed)
--   survival    = steps with at least k accepted / all steps
--   proposed    = steps that proposed depth k / all steps
CREATE OR REPLACE VIEW acceptance_by_position AS
WITH positions AS (
    SELECT h.*, k.depth AS k
    FROM step_histogram AS h
    JOIN (
        SELECT run_id, method, unnest(generate_series(1, max(depth)))::INTEGER AS depth
        FROM step_histogram
        GROUP BY run_id, method
    ) AS k ON k.run_id = h.run_id AND k.method = h.method AND (h.cut_depth IS NULL OR k.depth <= h.cut_depth)
),
counts AS (
    SELECT
        run_id,
        method,
        category,
        k,
        sum(num_steps)::BIGINT AS num_steps,
        coalesce(sum(num_steps) FILTER (depth >= k), 0)::BIGINT AS num_proposed,
        coalesce(sum(num_steps) FILTER (depth >= k AND num_accepted >= k - 1), 0)::BIGINT AS num_tested,
        coalesce(sum(num_steps) FILTER (num_accepted >= k), 0)::BIGINT AS num_accepted
    FROM positions
    GROUP BY GROUPING SETS ((run_id, method, k), (run_id, method, category, k))
)
SELECT
    run_id,
    method,
    category,
    k AS depth,
    num_steps,
    num_proposed,
    num_tested,
    num_accepted,
    num_accepted / nullif(num_tested, 0) AS conditional,
    num_accepted / num_steps AS survival,
    num_proposed / num_steps AS proposed
FROM counts;

-- Observed positions of methods that learn, with whose they are. place: positions the method had observed before in the
-- same repeat, in the order of its stream.
CREATE OR REPLACE VIEW observed_positions AS
SELECT
    o.*,
    g.method,
    g.question_id,
    g.category,
    g.turn,
    g.repeat,
    row_number() OVER (
        PARTITION BY o.run_id, g.method, g.repeat ORDER BY o.group_id, o.row_index, o.position
    ) - 1 AS place
FROM observed AS o
JOIN generations AS g USING (run_id, group_id, row_index);

-- What each adapter version's drafts came to live; first_place: where in its repeat's stream it began.
CREATE OR REPLACE VIEW adapter_versions AS
SELECT
    run_id,
    method,
    domain,
    version,
    min(place) AS first_place,
    count(*) AS num_positions,
    count(*) FILTER (is_accepted) AS num_accepted,
    num_accepted / num_positions AS acceptance,
    avg(overlap) AS overlap
FROM observed_positions
GROUP BY run_id, method, domain, version;

-- Drafted positions that were tried, answer by answer along each repeat's stream. A step tries its accepted positions
-- and its first rejection, as far as its text was not cut. since: tried before this answer in the same repeat.
CREATE OR REPLACE VIEW stream_acceptance AS
WITH answers AS (
    SELECT
        s.run_id,
        s.group_id,
        s.row_index,
        sum(CASE
            WHEN s.num_truncated > 0 THEN s.num_committed - s.num_truncated
            ELSE least(s.num_accepted + 1, s.depth)
        END)::BIGINT AS num_tried,
        sum(CASE
            WHEN s.num_truncated > 0 THEN s.num_committed - s.num_truncated
            ELSE s.num_accepted
        END)::BIGINT AS num_accepted
    FROM steps AS s
    GROUP BY s.run_id, s.group_id, s.row_index
)
SELECT
    a.run_id,
    g.method,
    g.repeat,
    a.group_id,
    a.row_index,
    g.question_id,
    g.category,
    a.num_tried,
    a.num_accepted,
    coalesce(sum(a.num_tried) OVER (
        PARTITION BY a.run_id, g.method, g.repeat ORDER BY a.group_id, a.row_index
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ), 0)::BIGINT AS since
FROM answers AS a
JOIN generations AS g USING (run_id, group_id, row_index)
WHERE a.num_tried > 0;

-- Which sibling the target took, by depth: rank 0 is the drafter's first choice.
CREATE OR REPLACE VIEW acceptance_ranks AS
WITH kept AS (
    SELECT
        s.run_id,
        g.method,
        s.ranks[1 : least(s.num_accepted, s.num_committed - s.num_truncated)] AS ranks
    FROM steps AS s
    JOIN generations AS g USING (run_id, group_id, row_index)
    SEMI JOIN timed_groups AS t ON t.run_id = s.run_id AND t.group_id = s.group_id
    WHERE s.num_accepted > 0
),
counts AS (
    SELECT run_id, method, depth, rank, count(*) AS num
    FROM (
        SELECT run_id, method, unnest(range(1, len(ranks) + 1))::INTEGER AS depth, unnest(ranks) AS rank FROM kept
    ) AS accepted
    GROUP BY run_id, method, depth, rank
)
SELECT run_id, method, depth, rank, num, num / sum(num) OVER (PARTITION BY run_id, method, depth) AS share
FROM counts;

-- Steps of a captured run that met no graph, among all its timed ones: their shape was not foreseen, or none could be
-- captured. A step is that of a whole group, however many rows it has. One that was under way when the last row ended
-- is counted and no row's, hence `least`. Parts of a resumed run add up.
CREATE OR REPLACE VIEW single_steps AS
WITH single AS (
    SELECT run_id, method, sum(value)::BIGINT AS num
    FROM measurements
    WHERE name = 'single_steps'
    GROUP BY run_id, method
),
longest AS (
    SELECT g.run_id, g.method, g.group_id, max(g.num_steps) AS num
    FROM generations AS g
    SEMI JOIN single AS s ON s.run_id = g.run_id AND s.method = g.method
    SEMI JOIN timed_groups AS t ON t.run_id = g.run_id AND t.group_id = g.group_id
    GROUP BY g.run_id, g.method, g.group_id
),
timed AS (
    SELECT run_id, method, sum(num)::BIGINT AS num
    FROM longest
    GROUP BY run_id, method
)
SELECT
    s.run_id,
    s.method,
    least(s.num, t.num) AS num_steps,
    t.num AS num_timed,
    least(s.num, t.num) / nullif(t.num, 0) AS share
FROM single AS s
JOIN timed AS t USING (run_id, method);

-- Timed generations in which a drafter's own numbers were NaN or infinite. Parts of a resumed run add up.
CREATE OR REPLACE VIEW drafts_not_finite AS
SELECT run_id, method, sum(value)::BIGINT AS num_generations
FROM measurements
WHERE name = 'drafts_not_finite'
GROUP BY run_id, method;

-- Methods whose steps could not be captured although those of the run were, and why. A resumed run says it again.
CREATE OR REPLACE VIEW not_captured AS
SELECT run_id, method, arg_max(detail, position) AS reason
FROM measurements
WHERE name = 'num_graphs'
GROUP BY run_id, method
HAVING arg_max(value, position) = 0;

-- What Leviathan et al. 2023 need to know of a chain, as measured: alpha, the rate over every tested position; gamma,
-- the mean proposed length; c, seconds per drafted token in units of a baseline step. The formula is metrics.leviathan.
CREATE OR REPLACE VIEW chain_theory AS
WITH rate AS (
    SELECT run_id, method, sum(num_accepted) / nullif(sum(num_tested), 0) AS alpha
    FROM acceptance_by_position
    WHERE category IS NULL
    GROUP BY run_id, method
),
length AS (
    SELECT run_id, method, sum(depth * num_steps) / sum(num_steps) AS gamma
    FROM step_histogram
    GROUP BY run_id, method
)
SELECT
    m.run_id,
    m.method,
    rate.alpha,
    length.gamma,
    w.draft_s / nullif(length.gamma, 0) / w.ar_s AS c
FROM methods AS m
JOIN rate USING (run_id, method)
JOIN length USING (run_id, method)
JOIN waterfall AS w ON w.run_id = m.run_id AND w.method = m.method AND w.category IS NULL
WHERE m.kind = 'chain';

-- How near the baseline is to the memory's speed: bytes really read in decode / decode seconds.
--   bytes = rounds * weight_bytes_per_token + cache_bytes_per_token * sum over rows and steps i < n of (prompt + i + 1)
-- A batched round reads the weights once; step i attends to the prompt, the i tokens before the root, and the root.
CREATE OR REPLACE VIEW baseline_meter AS
WITH reads AS (
    SELECT
        g.run_id,
        g.group_id,
        g.method,
        max(g.num_steps) AS num_rounds,
        sum(g.num_steps::BIGINT * g.num_prompt_tokens + g.num_steps::BIGINT * (g.num_steps + 1) // 2) AS num_context_tokens
    FROM generations AS g
    JOIN methods AS m USING (run_id, method)
    WHERE m.kind = 'baseline'
    GROUP BY g.run_id, g.group_id, g.method
),
bandwidth AS (
    SELECT run_id, arg_max(value, position) AS value FROM measurements WHERE name = 'copy_bandwidth' GROUP BY run_id
),
sums AS (
    SELECT
        reads.run_id,
        reads.method,
        sum(reads.num_rounds)::BIGINT AS num_rounds,
        sum(reads.num_context_tokens)::BIGINT AS num_context_tokens,
        sum(t.decode_s) AS decode_s
    FROM reads
    JOIN timed_groups AS t USING (run_id, group_id)
    GROUP BY reads.run_id, reads.method
)
SELECT
    s.run_id,
    s.method,
    s.num_rounds,
    s.num_context_tokens,
    s.decode_s,
    (s.num_rounds * r.weight_bytes_per_token + s.num_context_tokens * r.cache_bytes_per_token)::BIGINT AS num_bytes,
    nullif(num_bytes, 0) / nullif(s.decode_s, 0) AS bytes_per_s, -- of answers that end with the prefill's token: none
    coalesce(r.copy_bandwidth, b.value) AS copy_bandwidth,
    bytes_per_s / coalesce(r.copy_bandwidth, b.value) AS share
FROM sums AS s
JOIN runs AS r USING (run_id)
LEFT JOIN bandwidth AS b USING (run_id);

-- Equality with the reference and with the suite's answers: numbers of generations (question x turn x repeat).
CREATE OR REPLACE VIEW verdicts AS
SELECT
    run_id,
    method,
    category,
    count(DISTINCT question_id) AS num_questions,
    count(equality) AS num_judged,
    count(*) FILTER (equality = 'identical') AS identical,
    count(*) FILTER (equality = 'tie') AS tie,
    count(*) FILTER (equality = 'numeric') AS numeric,
    count(*) FILTER (equality = 'bug') AS bug,
    count(correct) AS num_scored,
    count(*) FILTER (correct) AS num_correct,
    count(*) FILTER (correct) / nullif(count(correct), 0) AS accuracy
FROM generations
GROUP BY GROUPING SETS ((run_id, method), (run_id, method, category));

CREATE OR REPLACE VIEW failure_counts AS
SELECT run_id, method, category, count(*) AS num_failed
FROM failures
GROUP BY GROUPING SETS ((run_id, method), (run_id, method, category));

-- Imported files, one side each. tokens_per_s and tokens_per_step are those tools' own counting, prefill included.
CREATE OR REPLACE VIEW external_totals AS
SELECT
    import_id,
    is_baseline,
    count(DISTINCT question_id) AS num_questions,
    count(*) AS num_turns,
    sum(num_new_tokens)::BIGINT AS num_new_tokens,
    sum(num_steps)::BIGINT AS num_steps,
    sum(wall_s) AS wall_s,
    sum(num_new_tokens) / sum(wall_s) AS tokens_per_s,
    sum(num_new_tokens) / nullif(sum(num_steps), 0) AS tokens_per_step
FROM external_turns
GROUP BY import_id, is_baseline;

-- A question's turns pooled on both sides, only turns both files have. Seconds per token are of sides that have tokens.
CREATE OR REPLACE VIEW external_pairs AS
WITH turns AS (
    SELECT
        import_id, is_baseline, question_id, turn,
        max(category) AS category,
        sum(num_new_tokens)::BIGINT AS num_new_tokens,
        sum(wall_s) AS wall_s
    FROM external_turns
    GROUP BY import_id, is_baseline, question_id, turn
)
SELECT
    m.import_id,
    m.question_id,
    max(m.category) AS category,
    sum(m.num_new_tokens)::BIGINT AS num_new_tokens,
    sum(m.wall_s) AS wall_s,
    sum(b.num_new_tokens)::BIGINT AS base_num_new_tokens,
    sum(b.wall_s) AS base_wall_s
FROM turns AS m
JOIN turns AS b
    ON b.import_id = m.import_id AND b.question_id = m.question_id AND b.turn = m.turn AND b.is_baseline
WHERE NOT m.is_baseline
GROUP BY m.import_id, m.question_id
HAVING sum(m.num_new_tokens) > 0 AND sum(b.num_new_tokens) > 0;

-- Figures of an evaluation, one row per depth (from 0). accuracy: of the first choice. chain: of the anchors whose
-- labels up to here exist, the share whose first choices were all right.
CREATE OR REPLACE VIEW train_depths AS
SELECT
    run_id,
    step,
    place - 1 AS depth,
    num[place] AS num_labels,
    loss[place] / nullif(num[place], 0) AS loss,
    correct[place][1] / nullif(num[place], 0) AS accuracy,
    right_[place] / nullif(whole[place], 0) AS chain
FROM (SELECT *, unnest(generate_series(1, len(num))) AS place FROM train_evals);

-- acceptance_length: of the simulated run, bonus included. expected_accepted: of a greedy chain, by the labels.
CREATE OR REPLACE VIEW train_figures AS
SELECT
    e.run_id,
    e.step,
    e.is_best,
    list_sum(e.loss) / nullif(list_sum(e.num), 0) AS loss,
    e.num_new_tokens / nullif(e.num_steps, 0) AS acceptance_length,
    d.expected_accepted
FROM train_evals AS e
JOIN (SELECT run_id, step, sum(chain) AS expected_accepted FROM train_depths GROUP BY run_id, step) AS d
    USING (run_id, step);
