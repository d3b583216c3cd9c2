-- The history of a review: nothing is changed or deleted; `corrections` is what the people agree on.
CREATE TABLE IF NOT EXISTS actions(id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, person TEXT NOT NULL,
    at REAL NOT NULL, kind TEXT NOT NULL, seconds REAL, undoes INTEGER UNIQUE REFERENCES actions);
CREATE TABLE IF NOT EXISTS decisions(id INTEGER PRIMARY KEY, action INTEGER NOT NULL REFERENCES actions,
    product TEXT NOT NULL, characteristic TEXT NOT NULL, label TEXT NOT NULL, suggested TEXT NOT NULL,
    kind TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS decisions_of ON decisions(product, characteristic);
CREATE INDEX IF NOT EXISTS decisions_by ON decisions(action);
CREATE INDEX IF NOT EXISTS actions_by ON actions(person, id);
CREATE VIEW IF NOT EXISTS live AS
    SELECT d.*, a.person, a.at FROM decisions d JOIN actions a ON a.id = d.action
    WHERE NOT EXISTS (SELECT 1 FROM actions u WHERE u.undoes = a.id);
CREATE VIEW IF NOT EXISTS corrections AS SELECT product, characteristic, COALESCE(resolved, MIN(label)) AS label
    FROM (SELECT *, MAX(id), (SELECT label FROM live r WHERE r.product = a.product
            AND r.characteristic = a.characteristic AND r.kind = 'resolve' ORDER BY id DESC LIMIT 1) AS resolved
        FROM live a WHERE kind IN ('accept', 'grid', 'check', 'resolve', 'import')
        GROUP BY product, characteristic, person)  -- the last answer of each
    GROUP BY product, characteristic HAVING resolved IS NOT NULL OR COUNT(DISTINCT label) = 1;
CREATE TRIGGER IF NOT EXISTS actions_UPDATE BEFORE UPDATE ON actions BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS actions_DELETE BEFORE DELETE ON actions BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS decisions_UPDATE BEFORE UPDATE ON decisions BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS decisions_DELETE BEFORE DELETE ON decisions BEGIN SELECT RAISE(ABORT, 'append only'); END;
