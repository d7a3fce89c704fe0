BEGIN TRANSACTION;
CREATE TABLE firings (
	occurrence VARCHAR(100) NOT NULL, 
	schedule VARCHAR(64) NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	first_s BIGINT NOT NULL, 
	tick_s BIGINT NOT NULL, 
	number BIGINT NOT NULL, 
	recorded_s FLOAT NOT NULL, 
	PRIMARY KEY (occurrence)
);
INSERT INTO "firings" VALUES('nightly/2026-09-22T00:00Z','nightly','MISSED','found later than the grace of 1h allows',1790035200,1790035200,1,1790086400.0);
CREATE TABLE schedules (
	name VARCHAR(64) NOT NULL, 
	template JSON NOT NULL, 
	cron TEXT NOT NULL, 
	timezone TEXT NOT NULL, 
	overlap TEXT NOT NULL, 
	catch_up TEXT NOT NULL, 
	created_s FLOAT NOT NULL, 
	handled_s FLOAT NOT NULL, 
	grace_s FLOAT NOT NULL, 
	paused BOOLEAN NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "schedules" VALUES('nightly','{"spec": "compare.yaml", "priority": null, "owner": "ada", "plugins": [], "skip_infeasible": false, "certificate": true, "code": "/shared/queue/code/abc.zip"}','0 2 * * *','Europe/Berlin','skip','newest',1790000000.0,1790082799.0,3600.0,0);
INSERT INTO "schedules" VALUES('off','{"spec": "compare.yaml"}','*/5 * * * *','UTC','skip','newest',1790000000.0,1790000000.0,3600.0,1);
CREATE INDEX ix_firings_schedule ON firings (schedule);
COMMIT;
