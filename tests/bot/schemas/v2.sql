BEGIN TRANSACTION;
CREATE TABLE card (
    job_id         INTEGER PRIMARY KEY,
    channel_id     INTEGER NOT NULL,
    -- Rises with each change; what was shown; the last change that must be shown at once.
    version        INTEGER NOT NULL,
    shown_version  INTEGER NOT NULL DEFAULT 0,
    urgent_version INTEGER NOT NULL DEFAULT 0,
    nonce          TEXT    NOT NULL UNIQUE,
    state          TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'sent', 'dead')),
    tries          INTEGER NOT NULL DEFAULT 0,
    retry_at       REAL    NOT NULL DEFAULT 0,
    message_id     INTEGER,
    sent_at        REAL,
    shown_at       REAL,
    reason         TEXT
) STRICT;
INSERT INTO "card" VALUES(1,100,3,3,0,'000000000000000000000051','sent',0,0.0,901,NULL,NULL,NULL);
INSERT INTO "card" VALUES(2,100,3,2,0,'000000000000000000000052','sent',0,0.0,902,NULL,NULL,NULL);
INSERT INTO "card" VALUES(5,100,3,2,0,'000000000000000000000055','sent',0,0.0,905,NULL,NULL,NULL);
CREATE TABLE dataset (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    guild_id   INTEGER NOT NULL,
    owner_id   INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    -- Of what was handed in; names the folder.
    sha256     TEXT    NOT NULL,
    -- The folder below it that `trainer prepare` wrote; digest, counts and summary are of it.
    revision   TEXT    NOT NULL DEFAULT 'prepared',
    -- `<sha256>/<revision>` of the dataset that this one grew out of, whose sides of the split it holds; or empty.
    earlier    TEXT    NOT NULL DEFAULT '',
    -- What people decided (`trainer/protocol/edits.py`), also what is in no revision yet.
    edits      TEXT    NOT NULL DEFAULT '{}',
    -- Of what training sees (`DatasetReport.digest`).
    digest     TEXT    NOT NULL,
    counts     TEXT    NOT NULL,
    summary    TEXT    NOT NULL,
    created_at REAL    NOT NULL,
    deleted_at REAL
) STRICT;
INSERT INTO "dataset" VALUES(3,10,5,'foxes','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','prepared','','{}','d','{"images":9,"kept":9,"dropped":0,"refused":0,"train":7,"validation":1,"test":1,"captioned":9}','Nine.',1000.5,NULL);
INSERT INTO "dataset" VALUES(7,10,5,'owls','abababababababababababababababababababababababababababababababab','prepared','','{}','d','{"images":9,"kept":9,"dropped":0,"refused":0,"train":7,"validation":1,"test":1,"captioned":9}','Nine.',1000.5,NULL);
CREATE TABLE draft (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Becomes the job's: pressed twice, it is one job.
    interaction_id INTEGER NOT NULL UNIQUE,
    guild_id       INTEGER NOT NULL,
    channel_id     INTEGER NOT NULL,
    owner_id       INTEGER NOT NULL,
    dataset_id     INTEGER NOT NULL REFERENCES dataset (id),
    -- What was asked for, as it was typed (JSON).
    wishes         TEXT    NOT NULL,
    state          TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'going', 'cancelled')),
    created_at     REAL    NOT NULL
) STRICT;
INSERT INTO "draft" VALUES(1,201,10,100,5,7,'{"preset":"lora"}','waiting',2000.0);
INSERT INTO "draft" VALUES(2,202,10,100,5,7,'{"preset":"lora"}','going',2000.0);
INSERT INTO "draft" VALUES(3,203,10,100,5,7,'{"preset":"lora"}','cancelled',2000.0);
INSERT INTO "draft" VALUES(4,105,10,100,5,7,'{"preset":"lora"}','going',2000.0);
CREATE TABLE job (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    interaction_id    INTEGER NOT NULL UNIQUE,
    guild_id          INTEGER NOT NULL,
    channel_id        INTEGER NOT NULL,
    owner_id          INTEGER NOT NULL,
    dataset_id        INTEGER NOT NULL REFERENCES dataset (id),
    name              TEXT    NOT NULL,
    spec              TEXT    NOT NULL,
    state             TEXT    NOT NULL
        CHECK (state IN ('queued', 'running', 'stopping', 'succeeded', 'failed', 'cancelled')),
    stop_intent       TEXT CHECK (stop_intent IN ('cancel', 'keep_best')),
    stopped_by        INTEGER,
    -- When the trainer was told to stop; NULL before it.
    stop_sent_at      REAL,
    -- 1: the next start only finishes (`trainer run --finish`).
    is_finishing      INTEGER NOT NULL DEFAULT 0,
    -- 1: it was interrupted and goes on before all that never started.
    is_front          INTEGER NOT NULL DEFAULT 0,
    -- Starts, and those among them that do not count against the limit.
    attempt           INTEGER NOT NULL DEFAULT 0,
    excused           INTEGER NOT NULL DEFAULT 0,
    -- Rises over all claims: who was served last, whatever the clock says.
    claim_number      INTEGER,
    handle            TEXT,
    -- Of events.jsonl: bytes read, and the last event's number.
    read_bytes        INTEGER NOT NULL DEFAULT 0,
    last_seq          INTEGER NOT NULL DEFAULT 0,
    heard_at          REAL,
    -- Newest `step_done`; the others are not kept.
    step              TEXT,
    last_word         TEXT,
    end_reason        TEXT,
    created_at        REAL    NOT NULL,
    started_at        REAL,
    ended_at          REAL,
    CHECK (read_bytes >= 0 AND excused <= attempt)
) STRICT;
INSERT INTO "job" VALUES(1,101,10,100,6,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','succeeded',NULL,NULL,NULL,0,0,1,0,1,NULL,500,6,1200.0,'{"seq": 4, "time": 0.0, "type": "step_done", "step": 1, "epoch": 1, "loss": 0.2, "learning_rate": 0.0001, "steps_per_s": 1.0, "eta_s": null, "peak_memory_bytes": 0}','{"seq": 14, "time": 0.0, "type": "finished", "epochs": 3, "best_epoch": 3, "stopped_early": false, "base_loss": 0.2, "best_loss": 0.1, "best_ratio": 0.5, "seconds": 1.0, "comparison": "c.png", "comparison_alt": "base and best", "report": null}',NULL,1001.0,1100.0,1300.0);
INSERT INTO "job" VALUES(2,102,10,100,5,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','running',NULL,NULL,NULL,0,0,1,0,2,'{"job_dir":"/nowhere/jobs/2","process":null}',500,6,1200.0,'{"seq": 4, "time": 0.0, "type": "step_done", "step": 1, "epoch": 1, "loss": 0.2, "learning_rate": 0.0001, "steps_per_s": 1.0, "eta_s": null, "peak_memory_bytes": 0}',NULL,NULL,1002.0,1100.0,NULL);
INSERT INTO "job" VALUES(3,103,10,100,6,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','stopping','keep_best',5,1250.0,0,0,1,0,3,'{"job_dir":"/nowhere/jobs/3","process":null}',500,6,1200.0,'{"seq": 4, "time": 0.0, "type": "step_done", "step": 1, "epoch": 1, "loss": 0.2, "learning_rate": 0.0001, "steps_per_s": 1.0, "eta_s": null, "peak_memory_bytes": 0}',NULL,NULL,1003.0,1100.0,NULL);
INSERT INTO "job" VALUES(4,104,10,100,5,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','queued',NULL,NULL,NULL,0,1,1,1,4,NULL,500,6,1200.0,'{"seq": 4, "time": 0.0, "type": "step_done", "step": 1, "epoch": 1, "loss": 0.2, "learning_rate": 0.0001, "steps_per_s": 1.0, "eta_s": null, "peak_memory_bytes": 0}',NULL,NULL,1004.0,1100.0,NULL);
INSERT INTO "job" VALUES(5,105,10,100,6,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','queued',NULL,NULL,NULL,0,0,0,0,NULL,NULL,0,0,NULL,NULL,NULL,NULL,1005.0,NULL,NULL);
INSERT INTO "job" VALUES(6,106,10,100,5,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','queued',NULL,NULL,NULL,0,0,0,0,NULL,NULL,0,0,NULL,NULL,NULL,NULL,1006.0,NULL,NULL);
INSERT INTO "job" VALUES(8,108,10,100,5,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','failed',NULL,NULL,NULL,0,0,3,0,7,NULL,0,0,NULL,NULL,NULL,'It died.',1008.0,NULL,1400.0);
INSERT INTO "job" VALUES(9,109,10,100,6,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','cancelled','cancel',6,NULL,0,0,0,0,NULL,NULL,0,0,NULL,NULL,NULL,NULL,1009.0,NULL,1400.0);
INSERT INTO "job" VALUES(10,110,10,100,5,7,'owl','{"version":2,"task":"diffusion","name":"owl","dataset":"/d/abababababababababababababababababababababababababababababababab/prepared","preset":"lora","base":{"source":"tiny","revision":null,"config":null,"clip_skip":1},"method":{"kind":"lora","rank":16,"alpha":null,"dropout":0.0,"block_size":32,"factor":null,"targets":null,"pattern":"","text_encoder":false,"vectors":1,"initial_word":""},"training":{"epochs":20,"repeats":1,"batch_size":4,"micro_batch_size":null,"learning_rate":0.0001,"text_encoder_learning_rate":null,"layer_decay":1.0,"optimizer":"adamw","optimizer_arguments":{},"weight_decay":0.01,"schedule":"cosine","schedule_arguments":{},"warmup_share":0.05,"warmup_steps":null,"max_grad_norm":1.0,"ema_decay":null,"caption_dropout":0.05,"trigger":"","tag_shuffle":false,"keep_tags":1,"regularization_weight":1.0,"resolution":null,"precision":"auto","tf32":true,"gradient_checkpointing":false,"compile":false,"keep_every_epochs":null,"seed":0},"stages":[],"objective":{"loss":"mse","huber_delta":0.1,"snr_gamma":null,"debiased":false,"prediction":"auto","zero_terminal_snr":false,"noise_offset":0.0,"pyramid_noise":null,"input_perturbation":0.0,"masked":false,"mask_floor":0.0},"prior":{"class_prompt":"","images":100,"weight":0.5,"steps":25,"guidance":7.0,"seed":99},"classifier":{"label_smoothing":0.0,"class_weights":"none","dropout":0.0},"split":{"kind":"report","fold":1,"folds":5},"validation":{"timesteps":4,"draws":2,"max_images":64,"train_images":32,"every_steps":null,"seed":555,"test":true},"early_stopping":{"enabled":true,"patience":4,"min_delta":0.002,"warmup_epochs":2,"smoothing":0.3,"max_hours":null},"samples":{"prompts":[],"unrelated_prompts":["a mountain lake in the morning","a bowl of fruit on a table"],"negative_prompt":"","every_epochs":1,"steps":25,"guidance":7.0,"seed":1234,"similarity_model":null},"augmentation":{"preset":"none","variants":4,"flip":"auto","custom":[]},"mix":[]}','queued',NULL,NULL,NULL,0,0,0,0,NULL,NULL,0,0,NULL,NULL,NULL,NULL,1010.0,NULL,NULL);
CREATE TABLE job_event (
    job_id  INTEGER NOT NULL REFERENCES job (id),
    seq     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    type    TEXT    NOT NULL,
    body    TEXT    NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO "job_event" VALUES(1,1,1,'started','{"seq": 1, "time": 0.0, "type": "started", "version": 1, "pid": 1, "device": "cpu", "precision": "fp32", "epochs": 3, "total_steps": 30, "train_images": 10, "validation_images": 2, "test_images": 2, "resolution": 64, "trainable_parameters": 1, "resumed_from_step": 0, "augmentation_sheet": null, "data_words": "", "micro_batch_size": 0, "batch_size": 0, "processes": 1}');
INSERT INTO "job_event" VALUES(1,3,1,'base_validated','{"seq": 3, "time": 0.0, "type": "base_validated", "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}}');
INSERT INTO "job_event" VALUES(1,6,1,'epoch_ended','{"seq": 6, "time": 0.0, "type": "epoch_ended", "epoch": 1, "step": 10, "train_loss": 0.2, "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}, "learning_rate": 0.0001, "seconds": 1.0, "is_best": true, "best_epoch": 1, "chart": "c.png", "smoothed_ratio": null, "train_validation": null, "gap": null, "metrics": {}, "stage": 1}');
INSERT INTO "job_event" VALUES(2,1,1,'started','{"seq": 1, "time": 0.0, "type": "started", "version": 1, "pid": 1, "device": "cpu", "precision": "fp32", "epochs": 3, "total_steps": 30, "train_images": 10, "validation_images": 2, "test_images": 2, "resolution": 64, "trainable_parameters": 1, "resumed_from_step": 0, "augmentation_sheet": null, "data_words": "", "micro_batch_size": 0, "batch_size": 0, "processes": 1}');
INSERT INTO "job_event" VALUES(2,3,1,'base_validated','{"seq": 3, "time": 0.0, "type": "base_validated", "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}}');
INSERT INTO "job_event" VALUES(2,6,1,'epoch_ended','{"seq": 6, "time": 0.0, "type": "epoch_ended", "epoch": 1, "step": 10, "train_loss": 0.2, "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}, "learning_rate": 0.0001, "seconds": 1.0, "is_best": true, "best_epoch": 1, "chart": "c.png", "smoothed_ratio": null, "train_validation": null, "gap": null, "metrics": {}, "stage": 1}');
INSERT INTO "job_event" VALUES(3,1,1,'started','{"seq": 1, "time": 0.0, "type": "started", "version": 1, "pid": 1, "device": "cpu", "precision": "fp32", "epochs": 3, "total_steps": 30, "train_images": 10, "validation_images": 2, "test_images": 2, "resolution": 64, "trainable_parameters": 1, "resumed_from_step": 0, "augmentation_sheet": null, "data_words": "", "micro_batch_size": 0, "batch_size": 0, "processes": 1}');
INSERT INTO "job_event" VALUES(3,3,1,'base_validated','{"seq": 3, "time": 0.0, "type": "base_validated", "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}}');
INSERT INTO "job_event" VALUES(3,6,1,'epoch_ended','{"seq": 6, "time": 0.0, "type": "epoch_ended", "epoch": 1, "step": 10, "train_loss": 0.2, "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}, "learning_rate": 0.0001, "seconds": 1.0, "is_best": true, "best_epoch": 1, "chart": "c.png", "smoothed_ratio": null, "train_validation": null, "gap": null, "metrics": {}, "stage": 1}');
INSERT INTO "job_event" VALUES(4,1,1,'started','{"seq": 1, "time": 0.0, "type": "started", "version": 1, "pid": 1, "device": "cpu", "precision": "fp32", "epochs": 3, "total_steps": 30, "train_images": 10, "validation_images": 2, "test_images": 2, "resolution": 64, "trainable_parameters": 1, "resumed_from_step": 0, "augmentation_sheet": null, "data_words": "", "micro_batch_size": 0, "batch_size": 0, "processes": 1}');
INSERT INTO "job_event" VALUES(4,3,1,'base_validated','{"seq": 3, "time": 0.0, "type": "base_validated", "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}}');
INSERT INTO "job_event" VALUES(4,6,1,'epoch_ended','{"seq": 6, "time": 0.0, "type": "epoch_ended", "epoch": 1, "step": 10, "train_loss": 0.2, "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}, "learning_rate": 0.0001, "seconds": 1.0, "is_best": true, "best_epoch": 1, "chart": "c.png", "smoothed_ratio": null, "train_validation": null, "gap": null, "metrics": {}, "stage": 1}');
CREATE TABLE outbox (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    dedupe_key    TEXT    NOT NULL UNIQUE,
    job_id        INTEGER NOT NULL,
    channel_id    INTEGER NOT NULL,
    notice        TEXT    NOT NULL,
    -- Given to Discord, which returns the message already made for it. Random, so that it is no other database's.
    nonce         TEXT    NOT NULL UNIQUE,
    state         TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'sent', 'dead')),
    tries         INTEGER NOT NULL DEFAULT 0,
    retry_at      REAL    NOT NULL DEFAULT 0,
    message_id    INTEGER,
    reason        TEXT,
    created_at    REAL    NOT NULL,
    sent_at       REAL
) STRICT;
INSERT INTO "outbox" VALUES(1,'job:2:epoch:1',2,100,'{"kind": "epoch", "job_id": 2, "attempt": 1, "events": [{"seq": 6, "time": 0.0, "type": "epoch_ended", "epoch": 1, "step": 10, "train_loss": 0.2, "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}, "learning_rate": 0.0001, "seconds": 1.0, "is_best": true, "best_epoch": 1, "chart": "c.png", "smoothed_ratio": null, "train_validation": null, "gap": null, "metrics": {}, "stage": 1}], "detail": ""}','000000000000000000000002','waiting',0,0.0,NULL,NULL,1200.0,NULL);
INSERT INTO "outbox" VALUES(2,'job:1:epoch:1',1,100,'{"kind": "epoch", "job_id": 1, "attempt": 1, "events": [{"seq": 6, "time": 0.0, "type": "epoch_ended", "epoch": 1, "step": 10, "train_loss": 0.2, "validation": {"loss": 0.1, "ratio": 0.9, "bands": [{"first_timestep": 0, "last_timestep": 999, "loss": 0.1, "ratio": 0.9}], "training_loss": null, "ratio_low": null, "ratio_high": null}, "learning_rate": 0.0001, "seconds": 1.0, "is_best": true, "best_epoch": 1, "chart": "c.png", "smoothed_ratio": null, "train_validation": null, "gap": null, "metrics": {}, "stage": 1}], "detail": ""}','000000000000000000000001','sent',0,0.0,NULL,NULL,1200.0,NULL);
CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "setting" VALUES('commands','abc');
CREATE INDEX job_by_state ON job (state, id);
CREATE INDEX job_by_guild ON job (guild_id, id);
CREATE INDEX job_by_owner ON job (owner_id, claim_number);
CREATE INDEX outbox_unsent ON outbox (channel_id, id) WHERE state IN ('waiting', 'sending');
CREATE INDEX card_changed ON card (channel_id) WHERE shown_version < version;
CREATE UNIQUE INDEX dataset_name ON dataset (guild_id, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX dataset_content ON dataset (guild_id, sha256) WHERE deleted_at IS NULL;
CREATE INDEX draft_by_owner ON draft (owner_id, dataset_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('dataset',7);
INSERT INTO "sqlite_sequence" VALUES('job',10);
INSERT INTO "sqlite_sequence" VALUES('outbox',2);
INSERT INTO "sqlite_sequence" VALUES('draft',4);
COMMIT;
PRAGMA user_version=2;
