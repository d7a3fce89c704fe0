BEGIN TRANSACTION;
CREATE TABLE cells (
	job_id VARCHAR(300) NOT NULL, 
	cell_id VARCHAR(300) NOT NULL, 
	position INTEGER NOT NULL, 
	workers INTEGER NOT NULL, 
	gpus_per_worker INTEGER NOT NULL, 
	cpus_per_worker INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	likeness TEXT NOT NULL, 
	note TEXT NOT NULL, 
	accelerator TEXT, 
	predicted_s FLOAT NOT NULL, 
	queued_s FLOAT NOT NULL, 
	trained_s FLOAT NOT NULL, 
	PRIMARY KEY (job_id, cell_id)
);
INSERT INTO "cells" VALUES('done','done-0',0,2,0,1,'SUCCEEDED','like-done','',NULL,3600.0,1790000000.0,600.0);
INSERT INTO "cells" VALUES('low','low-0',0,2,0,1,'PREEMPTED','like-low','',NULL,3540.0,1790000690.0,90.0);
INSERT INTO "cells" VALUES('low','low-1',1,2,0,1,'RUNNING','like-low','',NULL,3600.0,1790000600.0,0.0);
INSERT INTO "cells" VALUES('low','low-2',2,2,0,1,'QUEUED','like-low','',NULL,3600.0,1790000600.0,0.0);
INSERT INTO "cells" VALUES('urgent','urgent-0',0,2,0,1,'RUNNING','like-urgent','',NULL,3600.0,1790000660.0,0.0);
INSERT INTO "cells" VALUES('urgent','urgent-1',1,2,0,1,'QUEUED','like-urgent','',NULL,3600.0,1790000660.0,0.0);
INSERT INTO "cells" VALUES('later','later-0',0,2,0,1,'CANCELLED','like-later','stopped by bob',NULL,3600.0,1790000690.0,0.0);
CREATE TABLE claim (taken INTEGER);
CREATE TABLE events (
	number INTEGER NOT NULL, 
	time_s FLOAT NOT NULL, 
	kind TEXT NOT NULL, 
	job_id TEXT NOT NULL, 
	cell_id TEXT NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (number)
);
INSERT INTO "events" VALUES(1,1790000000.0,'submitted','done','','ada submitted it: 1 cells to run, priority 0');
INSERT INTO "events" VALUES(2,1790000000.0,'granted','done','done-0','its turn: effective priority 0, share of ada 0.0 GPUs per weight; on node node-a');
INSERT INTO "events" VALUES(3,1790000000.0,'starting','done','','driver done.1');
INSERT INTO "events" VALUES(4,1790000000.0,'attached','done','','driver done.1, 1 cells to run');
INSERT INTO "events" VALUES(5,1790000600.0,'cell_ended','done','done-0','SUCCEEDED');
INSERT INTO "events" VALUES(6,1790000600.0,'ended','done','','SUCCEEDED: its driver ended with exit code 0');
INSERT INTO "events" VALUES(7,1790000600.0,'submitted','low','','ada submitted it: 3 cells to run, priority 0');
INSERT INTO "events" VALUES(8,1790000600.0,'granted','low','low-0','its turn: effective priority 0, share of ada 0.0 GPUs per weight; on node node-a');
INSERT INTO "events" VALUES(9,1790000600.0,'granted','low','low-1','its turn: effective priority 0, share of ada 0.0 GPUs per weight; on node node-a');
INSERT INTO "events" VALUES(10,1790000600.0,'starting','low','','driver low.1');
INSERT INTO "events" VALUES(11,1790000600.0,'attached','low','','driver low.1, 3 cells to run');
INSERT INTO "events" VALUES(12,1790000660.0,'submitted','urgent','','ada submitted it: 2 cells to run, priority 10');
INSERT INTO "events" VALUES(13,1790000660.0,'stop_preempted','low','low-0','preempted for urgent/urgent-0, priority 10 over 0, which would wait 59 min 00 s otherwise');
INSERT INTO "events" VALUES(14,1790000690.0,'given_back','low','low-0','');
INSERT INTO "events" VALUES(15,1790000690.0,'stop_preempted','low','low-1','preempted for urgent/urgent-1, priority 10 over 0, which would wait 58 min 30 s otherwise');
INSERT INTO "events" VALUES(16,1790000690.0,'granted','urgent','urgent-0','its turn: effective priority 10, share of ada 0.0 GPUs per weight; on node node-a');
INSERT INTO "events" VALUES(17,1790000690.0,'starting','urgent','','driver urgent.1');
INSERT INTO "events" VALUES(18,1790000690.0,'attached','urgent','','driver urgent.1, 2 cells to run');
INSERT INTO "events" VALUES(19,1790000690.0,'submitted','later','','ada submitted it: 1 cells to run, priority 0');
INSERT INTO "events" VALUES(20,1790000690.0,'ended','later','','CANCELLED: stopped by bob');
CREATE TABLE facts (
	name VARCHAR(100) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "facts" VALUES('schema','2');
INSERT INTO "facts" VALUES('cluster','cluster-1');
INSERT INTO "facts" VALUES('alive','1790000690.0');
INSERT INTO "facts" VALUES('promised','urgent/urgent-1');
CREATE TABLE jobs (
	job_id VARCHAR(300) NOT NULL, 
	kind TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	storage TEXT NOT NULL, 
	spec_file TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	stop TEXT NOT NULL, 
	code TEXT, 
	occurrence TEXT, 
	driver TEXT, 
	priority INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	losses INTEGER NOT NULL, 
	preemptible BOOLEAN NOT NULL, 
	in_turn BOOLEAN NOT NULL, 
	arguments JSON NOT NULL, 
	gpu_hours FLOAT, 
	hours FLOAT, 
	submitted_s FLOAT NOT NULL, 
	ended_s FLOAT, 
	exit_code INTEGER, 
	PRIMARY KEY (job_id)
);
INSERT INTO "jobs" VALUES('done','comparison','ada','/shared','compare.yaml','SUCCEEDED','its driver ended with exit code 0','','/shared/queue/code/abc.zip',NULL,'done.1',0,1,0,1,0,'["--no-certificate"]',NULL,NULL,1790000000.0,1790000600.0,0);
INSERT INTO "jobs" VALUES('low','comparison','ada','/shared','compare.yaml','RUNNING','','','/shared/queue/code/abc.zip',NULL,'low.1',0,1,0,1,0,'["--no-certificate"]',NULL,10.0,1790000600.0,NULL,NULL);
INSERT INTO "jobs" VALUES('urgent','comparison','ada','/shared','compare.yaml','RUNNING','','','/shared/queue/code/abc.zip',NULL,'urgent.1',10,1,0,1,0,'["--no-certificate"]',5.0,NULL,1790000660.0,NULL,NULL);
INSERT INTO "jobs" VALUES('later','comparison','ada','/shared','compare.yaml','CANCELLED','stopped by bob','','/shared/queue/code/abc.zip','nightly/2026-09-22T00:00:00Z',NULL,0,0,0,1,0,'["--no-certificate"]',NULL,NULL,1790000690.0,1790000690.0,NULL);
CREATE TABLE leases (
	lease_id INTEGER NOT NULL, 
	job_id TEXT NOT NULL, 
	cell_id TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	stop_reason TEXT NOT NULL, 
	ended TEXT NOT NULL, 
	gpus INTEGER NOT NULL, 
	placement JSON NOT NULL, 
	granted_s FLOAT NOT NULL, 
	stop_kind TEXT, 
	stop_asked_s FLOAT, 
	ended_s FLOAT, 
	PRIMARY KEY (lease_id)
);
INSERT INTO "leases" VALUES(1790000001,'done','done-0','ada','its turn: effective priority 0, share of ada 0.0 GPUs per weight; on node node-a','','SUCCEEDED',0,'[["node-a", 2]]',1790000000.0,NULL,NULL,1790000600.0);
INSERT INTO "leases" VALUES(1790000601,'low','low-0','ada','its turn: effective priority 0, share of ada 0.0 GPUs per weight; on node node-a','preempted for urgent/urgent-0, priority 10 over 0, which would wait 59 min 00 s otherwise','',0,'[["node-a", 2]]',1790000600.0,'preempted',1790000660.0,1790000690.0);
INSERT INTO "leases" VALUES(1790000602,'low','low-1','ada','its turn: effective priority 0, share of ada 0.0 GPUs per weight; on node node-a','preempted for urgent/urgent-1, priority 10 over 0, which would wait 58 min 30 s otherwise','',0,'[["node-a", 2]]',1790000600.0,'preempted',1790000690.0,NULL);
INSERT INTO "leases" VALUES(1790000691,'urgent','urgent-0','ada','its turn: effective priority 10, share of ada 0.0 GPUs per weight; on node node-a','','',0,'[["node-a", 2]]',1790000690.0,NULL,NULL,NULL);
COMMIT;
