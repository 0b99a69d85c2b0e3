"""The column dictionary: every table of `results/`, every column, its type, unit and meaning.

Pure data. `suite.records.tables` writes it out as `datapackage.json` beside the tables and checks every file against
it. A change of names, types, order or keys is a new SCHEMA_VERSION; a better sentence in a meaning is not.

Symbols: X is the trunk entering a merge, U the branch output that joins it, T the number of tokens, J X the token
mean mu(X), P X = X - J X the centered part c(X), A the attention matrix. At a writer W (attention W_O, FFN W_2), y_t
is its input and delta_t the gradient of the loss with respect to its output at token t; ybar and dbar are their token
means. Norms are Frobenius norms. Equation and table numbers are those of arXiv:2605.06169.
"""

from dataclasses import dataclass

SCHEMA_VERSION = "6"


@dataclass(frozen=True)
class Column:
    """One column. `unit` is "1" for a pure number and "" for text; an empty cell (not measured) is legal unless `required`."""

    name: str
    type: str  # string, integer, number or boolean
    unit: str
    meaning: str
    required: bool = False
    enum: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table. `path` is relative to `results/<protocol>/`; one that names {run_id} is one compressed file a run.

    Those of OF_NO_RUN are of no protocol and none of its runs: each lies in a folder of its name, `results/bench/`.
    """

    name: str
    path: str
    meaning: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    order: tuple[str, ...] = ()  # columns to sort by; the key where empty

    @property
    def by_run(self) -> bool:
        """Whether each run has a file of its own."""
        return "{" in self.path


def _text(name, meaning, **constraints):
    return Column(name, "string", "", meaning, **constraints)


def _integer(name, unit, meaning, **constraints):
    return Column(name, "integer", unit, meaning, **constraints)


def _number(name, meaning, unit="1", **constraints):
    return Column(name, "number", unit, meaning, **constraints)


def _flag(name, meaning, **constraints):
    return Column(name, "boolean", "", meaning, **constraints)


# columns of runs.csv that follow from its others: `verify` works them out again, and `rows_digest` leaves them out
DERIVED = ("trajectory",)
# columns that say where a row was made; `suite.environment.provenance` fills them
PROVENANCE = ("threads", "commit", "python", "torch", "accelerate", "cpu_model", "cpu_isa", "compiler", "platform")
RUN_ID = _text("run_id", "the run, as in runs.csv", required=True)
STEP = _integer("step", "step", "optimiser updates made before this row was measured", required=True)

RUNS = (
    _text("run_id", "name of the run: r and a hash of everything that changes its numbers", required=True),
    _text("trajectory", "t and a hash of the same without the protocol's name, length and measurements: rows that share it, of whatever "
          "protocols, are one run seen twice, and count once; the longest tells most. It names what was asked for: whether bytes are equal "
          "(rounding) the curves tell. Empty where no run is done"),
    _text("protocol", "name of the frozen protocol the run was made under", required=True),
    _integer("protocol_version", "1", "version of that protocol; runs of different versions are not comparable", required=True),
    _text("scheme", "residual scheme: the file of baselines/ that joins branch to trunk", required=True),
    _text("arm", "controlled: the paper's Post-Norm backbone for all; native: the scheme as its own paper has it",
          required=True, enum=("controlled", "native")),
    _text("params", "all of the scheme's parameters, as name=value joined by commas; - where it has none"),
    _text("writers", "initialisation of the last linear map of each branch: all zero, or the standard normal",
          enum=("zero", "std")),
    _number("gate_lr", "factor on the learning rate of the parameters that the scheme itself owns; 0: they stay as they start"),
    _integer("depth", "block", "number of blocks; each holds two merges", required=True),
    _number("lr", "peak learning rate, after warm-up", required=True),
    _integer("seed", "1", "seed of weights, batches, timesteps and noise", required=True),
    _text("data", "name of the data set"),
    _text("data_digest", "digest of the data tensor the run trained on"),
    _integer("width", "channel", "model width D"),
    _integer("image_tokens", "token", "image tokens in a sequence"),
    _integer("caption_tokens", "token", "caption tokens in a sequence"),
    _integer("batch", "sample", "samples in a training batch"),
    _text("init", "standard deviation of every weight at the start, or fan_in: 0.64 over the root of its number of inputs"),
    _integer("horizon", "step", "an event counts when it happens up to this step"),
    _integer("window", "step", "confirmation window: how long the loss must stay up, and how far a run trains past the horizon"),
    _integer("n_params", "1", "trainable parameters of the model"),
    _text("status", "how the attempt ended: done (collapse included), or stopped by memory, time or an exception",
          required=True, enum=("done", "oom", "timeout", "error")),
    _text("reason", "one line that says why, where status is not done or the outcome needs a word"),
    _text("outcome", "what the loss curve did; empty unless status is done",
          enum=("survived", "stuck", "collapsed", "degraded", "untrained", "nonfinite", "too_short")),
    _integer("crash_step", "step", "step from which a run that died is unusable: its collapse or first non-finite value; else empty"),
    _flag("confirmed", "whether the whole confirmation window after crash_step was seen; empty where crash_step is"),
    _integer("late_step", "step", "where no event counts: the first that began behind the horizon; empty if none"),
    _integer("last_step", "step", "last step trained; a confirmed collapse, or never having trained, stops a run before its horizon"),
    _number("constant_loss", "loss of the best token-constant output on this data (the level a collapse jumps to)"),
    _number("best_loss", "lowest running median of the training loss, up to the crash or the horizon"),
    _number("final_loss", "median of the training loss over the last window up to the horizon, or up to last_step where the run crashed"),
    _number("heldout_loss", "held-out loss at the horizon, or the last before it where the run ended sooner"),
    _number("max_grad_norm", "largest global gradient norm, before clipping"),
    _integer("spikes", "1", "excursions of the loss above the crash threshold that came back"),
    _text("state", "state of a dead or untrained run at its end: mean_dominated (TCS near 1), mean_free (TCS near -1/(T-1)) or other",
          enum=("mean_dominated", "mean_free", "other")),
    _flag("mms_signature", "whether the paper's gradient event was seen: spike of g_mean, then extinction of Q/K gradients"),
    _text("curve_digest", "d and the first 15 hex digits of the SHA-256 of the run's lines step,loss,grad_norm as they stand in its curve"),
    _text("rows_digest", "digest of this row but its trajectory, of the run's rows in every table but throughput.csv, and of its picture"),
    _flag("compiled", "whether the blocks were compiled (changes rounding, so it is part of run_id)"),
    _text("dtype", "floating-point type of weights and activations"),
    _text("device", "device type the run trained on: cpu or cuda"),
    _text("kernels", "always empty: earlier versions had GPU kernels of their own for one scheme"),
    _integer("threads", "1", "compute threads of the process (changes rounding)"),
    _integer("processes", "1", "data-parallel processes the run trained in (changes rounding)"),
    _integer("replicas", "1", "runs that were trained as one model with this one, itself included (changes rounding)"),
    _text("group", "digest of the run ids of that model, in their order; empty for a run trained alone"),
    _text("code_digest", "digest of the code that the scheme's class is made of, without comments and docstrings"),
    _text("commit", "commit of this repository, after a g, with -dirty where the tree had changes"),
    _text("python", "Python version"),
    _text("torch", "PyTorch version"),
    _text("accelerate", "Accelerate version"),
    _text("cpu_model", "processor model"),
    _text("cpu_isa", "widest vector instruction set PyTorch used"),
    _text("compiler", "C++ compiler behind compiled runs; after torch.compile and a comma where that stood in for the suite's own "
                      "compiled blocks, on a torch that these were not tested with (changes rounding)"),
    _text("platform", "operating system and machine"),
)

CURVES = (
    RUN_ID, STEP,
    _number("loss", "raw loss of this step's batch, never averaged", required=True),
    _number("grad_norm", "raw global gradient norm of this step, before clipping", required=True),
)

EVALS = (RUN_ID, STEP, _number("heldout_loss", "loss on held-out samples with fixed timesteps and noise"))

QUALITY = (
    _text("run_id", 'the run, as in runs.csv, or "real": real samples against real samples, the floor of every score',
          required=True),
    _integer("step", "step", "step whose weights were sampled; empty for the real row"),
    _number("fid", "Frechet distance between features of samples and of real data; empty unless fid_status is ok"),
    _number("kid", "kernel (MMD) distance between the same features, mean over subsets"),
    _number("kid_std", "standard deviation of kid over the subsets"),
    _number("inception_score", "Inception score of the samples under the feature network's classifier"),
    _text("fid_features", "feature network behind the scores; scores of different networks are not comparable"),
    _integer("fid_n", "sample", "number of samples drawn"),
    _text("fid_status", "ok; nonfinite: the samples held nan or inf; crashed: the run had crashed; "
                        "unavailable: the features do not fit the data",
          required=True, enum=("ok", "nonfinite", "crashed", "unavailable")),
    _text("features_digest", "digest of the feature network's weights"),
    _integer("nfe", "1", "model evaluations per sample of the Euler sampler, a guided pair counted once"),
    _number("guidance", "classifier-free guidance weight; 1 is none"),
    _number("clipped_fraction", "share of pixels clipped into the data's range"),
    _number("nonfinite_fraction", "share of pixels that were nan or inf"),
)

THROUGHPUT = (
    RUN_ID,
    _text("phase", "part of the run that was timed", required=True,
          enum=("train", "compile", "heldout", "sample", "score", "audit", "replay", "probe")),
    _integer("count", "1", "steps or evaluations in the phase"),
    _number("seconds", "wall-clock time of the phase", "s"),
    _number("ms_each", "mean wall-clock time of one step or evaluation", "ms"),
    _number("peak_mib", "peak memory of the process or device during the phase", "MiB"),
    _text("hardware", "processor or accelerator it was timed on"),
)

AUDIT = (
    RUN_ID, STEP,
    _integer("layer", "block", "block, counted from 0 at the input", required=True),
    _text("site", "merge of the block: attention or feed-forward", required=True, enum=("attn", "ffn")),
    _text("segment", "tokens the metrics are taken over: all (the paper's, global projector), image or caption", required=True,
          enum=("all", "image", "caption")),
    _flag("window", "true for a row of a dense replay around an event, false for one of the uniform stride", required=True),
    _number("g_mean", "norm of the mean part of the writer's gradient, the sum over samples of T dbar ybar^T (Eq. 5)"),
    _number("g_ctr", "norm of its centered part, the sum over tokens of (delta_t - dbar)(y_t - ybar)^T (Eq. 5)"),
    _number("amplification", "A = ||gradient of W||^2 / sum_t ||delta_t||^2||y_t||^2; 1 if tokens do not align, at most T (Eq. 6)"),
    _number("kappa_hat", "mean over s != t of |cos(y_s, y_t)| |cos(delta_s, delta_t)|; (T-1) kappa_hat proxies A - 1 (Eq. 32)"),
    _number("rho", "mean-to-centered ratio of the trunk, ||mu(X)|| / ||c(X)|| (Table 2)"),
    _number("r_tr", "branch-to-trunk ratio, ||U|| / ||X|| (Table 2)"),
    _number("var_gain", "centered content the branch brings, ||c(U)|| / ||c(X)|| (Table 2)"),
    _number("mu_eff", "largest singular value of P A P; attention contracts differences when below 1 (Eq. 4); attn only"),
    _number("row_div", "how far attention rows differ from each other, ||A - J A|| / ||A|| (Table 2); attn only"),
    _number("retention", "centered content that attention keeps centered, ||c(A c(X))|| / ||c(X)|| (Table 2); attn only"),
    _number("leakage", "centered content that attention turns into mean, ||mu(A c(X))|| / ||c(X)|| (Table 2); attn only"),
    _number("tcs", "token cosine similarity of X, mean over pairs i != j; 1 when all tokens point one way (Table 2)"),
    _number("q_grad", "root mean square of the gradient of W_Q (Table 2); attn only"),
    _number("k_grad", "root mean square of the gradient of W_K (Table 2); attn only"),
    _number("wo_grad", "root mean square of the gradient of the attention writer W_O; attn only"),
    _number("w2_grad", "root mean square of the gradient of the FFN writer W_2; ffn only"),
    _number("update_rms", "root mean square of the optimiser's change of the writer at this step"),
    _number("gate_alpha", "mean over channels of MV-Split's gate on the mean mode (Eq. 7); empty for schemes without it"),
    _number("gate_beta", "mean over channels of MV-Split's gate on the centered mode (Eq. 7); empty for schemes without it"),
    _number("gate_lambda", "mean over channels of the branch gain of LayerScale or ReZero (Eq. 40); empty for schemes without it"),
)

SPIKES = (
    RUN_ID,
    _integer("step", "step", "step at which the global gradient norm passed the threshold", required=True),
    _number("grad_norm", "raw global gradient norm at that step, before clipping"),
    _number("threshold", "adaptive threshold it passed"),
    _flag("recovered", "whether the loss came back; false when the spike led into the crash"),
    _integer("rank", "1", "place of the family among the largest gradients of the step, 1 to 15", required=True),
    _text("family", 'weights of one kind in one block, such as "L2 Q" or "L30 W2", or "Embed", "Final"'),
    _number("family_grad_norm", "root of the sum of squares of the family's gradient (Eq. 46)"),
)

PROBE = (
    RUN_ID, STEP,
    _integer("layer", "block", "number of blocks the trunk has passed; empty for a feature that is not of the trunk"),
    _text("feature", "what the ridge probe of the timestep t reads: image or caption token mean, per-channel RMS of the centered "
          "image tokens, statistics of the noisy input alone, or the image mean with shuffled t (control)", required=True,
          enum=("image_mean", "centered_rms", "caption_mean", "input_stats", "shuffled")),
    _number("r2", "share of the variance of t that the probe explains on held-out samples"),
    _number("mae", "mean absolute error of the probed t on held-out samples"),
    _number("residual_r2", "share of the variance of t left by input_stats that the feature removes"),
)

GATES = (
    RUN_ID, STEP,
    _text("site", "merge of the block: attention, feed-forward, or both where they share one instance", required=True,
          enum=("attn", "ffn", "both")),
    _integer("third", "1", "third of the depth, 1 at the input to 3 at the output", required=True),
    _text("gate", "kind of gate, as the scheme calls it; a parameter gate_alpha is of kind alpha", required=True),
    _number("rms", "root mean square of all values of these gates"),
    _number("mean", "mean of all values of these gates"),
)

BENCH = (
    _text("phase", "what one measurement is: a training step (step); one block alone, eager, forward or forward and backward; the "
          "clip and update of all weights (optimiser); an audit pass of the anatomy protocol's layers (audit); the held-out loss "
          "(heldout); one sampled image (sample); the first step of a model built in a new process, with an empty compile cache "
          "(first_step_cold) or a filled one at another depth (first_step_warm); a sweep's worker from nothing to its first step "
          "(worker_start); one run of a sweep, its wall-clock time shared out (sweep)", required=True,
          enum=("step", "block_forward", "block_forward_backward", "optimiser", "audit", "heldout", "sample", "first_step_cold",
                "first_step_warm", "worker_start", "sweep")),
    _text("variant", "suite: this project's; reference: the straightforward eager one of tests/bench/reference.py", required=True,
          enum=("suite", "reference")),
    _text("scheme", "residual scheme; of a sweep all of its schemes"),
    _integer("depth", "block", "number of blocks; empty where several or none"),
    _text("setting", "digits: the laptop protocol's sizes; wide: 64 channels, 64+4 tokens, batch 32, activation checkpointing; "
          "tiny: digits without compilation", required=True,
          enum=("digits", "wide", "tiny")),
    _integer("width", "channel", "model width D", required=True),
    _integer("image_tokens", "token", "image tokens in a sequence", required=True),
    _integer("caption_tokens", "token", "caption tokens in a sequence", required=True),
    _integer("batch", "sample", "samples in a batch", required=True),
    _text("dtype", "floating-point type", required=True),
    _text("device", "device type", required=True, enum=("cpu", "cuda")),
    _integer("workers", "1", "processes that worked at the same time", required=True),
    _integer("replicas", "1", "runs trained as one model; a time is then that of one run's share", required=True),
    _text("status", "measured; not measured: the machine lacks what it takes; failed", required=True,
          enum=("measured", "not measured", "failed")),
    _text("reason", "one line that says why, where status is not measured"),
    _number("median_ms", "median wall-clock time of one measurement", "ms"),
    _number("iqr_ms", "interquartile range of the same; 0 where rounds is 1", "ms"),
    _integer("rounds", "1", "times it was measured, warm-up not counted"),
    _number("peak_mib", "peak memory, of its own fresh process (imports included) on cpu, of tensors on cuda; of a sweep the "
            "largest worker's", "MiB"),
    _number("evaluation_share", "time in held-out loss, sampling and scores over time in training; of a sweep, over all its runs"),
    _number("over_plain", "median over the rounds of a step's time over that of a step of plain taken just before it, in turn; of a "
            "step of another scheme", "1"),
    _text("hardware", "processor or accelerator it was timed on"),
    _text("started", "when the call of bench that measured it began, UTC: only rows that share it may be compared", required=True),
    *(column for column in RUNS if column.name in PROVENANCE),
)

ROUNDING = (
    _text("scheme", "residual scheme, controlled arm", required=True),
    _integer("depth", "block", "number of blocks", required=True),
    _number("lr", "peak learning rate, after warm-up", required=True),
    _integer("seed", "1", "seed of weights, batches, timesteps and noise", required=True),
    _text("isa", "ATEN_CPU_CAPABILITY that was asked for", required=True, enum=("default", "avx2", "avx512")),
    _flag("compiled", "whether the blocks were compiled", required=True),
    _integer("moved", "1", "units in the last place by which every weight that is not 0 was moved at the start", required=True),
    _integer("horizon", "step", "as in runs.csv"),
    _text("outcome", "as in runs.csv", required=True),
    _integer("crash_step", "step", "as in runs.csv"),
    _number("final_loss", "as in runs.csv"),
    _number("heldout_loss", "as in runs.csv"),
    _text("early_digest", "digest of the first 50 losses as the curves' tables write them"),
    _flag("counts", "whether no earlier row of the same run has these first 50 losses: only then it is another rounding", required=True),
    *(column for column in RUNS if column.name in PROVENANCE),
)

DETECTED = (
    _text("truth", "what the logs are", required=True, enum=("dead", "alive")),
    _text("family", "our runs (of the committed protocols, a trajectory once), or how the logs were made", required=True),
    _text("cut", "which part of each curve is judged", required=True),
    _integer("every", "step", "one point of so many is kept", required=True),
    _integer("logs", "1", "logs judged", required=True),
    _integer("too_few", "1", "of these with under 8 points before the death or under 5 behind it: at best unknown", required=True),
    _integer("dead", "1", "judged collapsed, degraded or nonfinite", required=True),
    _integer("unknown", "1", "judged unknown: a rise, but too little to tell", required=True),
    _integer("survived", "1", "judged survived", required=True),
    _integer("too_short", "1", "judged too_short: no event, and too few points to call it alive", required=True),
    _integer("within_1", "1", "of those judged dead, with a crash step at most one point off; empty where none is or none died"),
    _integer("within_5", "1", "the same within five points"),
    _integer("worst", "1", "points by which the worst of them is off"),
    _text("rule_digest", "digests of the files of suite/detect and suite/verdict that made the verdicts", required=True),
    *(column for column in RUNS if column.name in PROVENANCE),
)

OF_NO_RUN = ("bench", "rounding", "detect")  # tables that are not of a protocol's runs

TABLES: dict[str, Table] = {table.name: table for table in (
    Table("runs", "runs.csv", "one row per attempted run, failures included", ("run_id",), RUNS,
          ("protocol", "scheme", "arm", "params", "writers", "gate_lr", "depth", "lr", "seed", "run_id")),
    Table("curves", "curves/{scheme}-L{depth}/{run_id}.csv.gz", "raw training curves", ("run_id", "step"), CURVES),
    Table("evals", "evals.csv", "held-out loss along each run", ("run_id", "step"), EVALS),
    Table("quality", "quality.csv", "sample quality", ("run_id", "step"), QUALITY),
    Table("throughput", "throughput.csv", "everything wall-clock; the one table that differs between repeats",
          ("run_id", "phase"), THROUGHPUT),
    Table("audit", "audit/{scheme}-L{depth}/{run_id}.csv.gz", "the paper's metrics by layer and merge",
          ("run_id", "step", "layer", "site", "segment"), AUDIT),
    Table("spikes", "spikes.csv", "gradient spikes and the weights that carried them", ("run_id", "step", "rank"), SPIKES),
    Table("probe", "probe.csv", "how well the timestep can be read from the trunk",
          ("run_id", "step", "layer", "feature"), PROBE),
    Table("gates", "gates.csv", "a scheme's own gates at every held-out evaluation; none for a scheme without gates",
          ("run_id", "step", "site", "third", "gate"), GATES),
    Table("bench", "bench.csv", "what a step and its parts cost, by scheme and depth; all rows of one call on one machine",
          ("phase", "variant", "scheme", "depth", "setting", "device", "workers", "replicas"), BENCH,
          ("phase", "setting", "device", "workers", "depth", "scheme", "variant")),
    Table("rounding", "rounding.csv", "the same runs under other roundings (results/rounding/measure.py)",
          ("scheme", "depth", "lr", "seed", "isa", "compiled", "moved"), ROUNDING),
    Table("detect", "detect.csv", "how well `detect` judges logs whose truth is known (results/detect/judge_all.py)",
          ("truth", "family", "cut", "every"), DETECTED),
)}
