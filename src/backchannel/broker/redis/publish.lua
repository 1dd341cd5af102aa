-- Keeps a publication and publishes it, in one step.
-- KEYS: the channel's state, the channel's entries (of one hash slot).
-- ARGV: topic, parcel, how many to keep, seconds to keep each, seconds to know the position after
--       that, an epoch to begin if need be, what names the engine's run of data, the node that
--       publishes ("" for who is none), its number for this one, "0" where it is new, "1" where it may
--       have been published already, "2" where it may have been in an earlier run, "3" where it may
--       have been, in this run of data and no other; how many seconds ago at most; and how often its
--       session has gone on elsewhere by then. Maybe the verb that publishes, and the names of other
--       engines' runs of data from which the slot came here, whole; "?" first where they are not known.
-- Returns epoch, offset (0 where it is not kept any more), how many nodes heard it; an error UNSURE
-- where it may have been published and that can't be found out any more: then it is not, again; an
-- error LATE where it was not, and what its session said after it was; an error STRANGE instead of a
-- new epoch after "?": the run that it is of and the time of its newest.
-- In the state stands when the epoch began: "time 1" where nothing is known of an earlier one, so that
-- there was none unless the engine has lost it; "time 0" where there was.
local epoch, run, top, began =
    unpack(redis.call("HMGET", KEYS[1], "epoch", "run", "top", "began"))
top = tonumber(top) or 0
local again = ARGV[10]
local by = "by:" .. ARGV[8]
-- Keys of a session end with numbers that count up; any other is one of its own. Once a session has gone
-- on elsewhere, and said something here, what it has still on its way from before is none any more.
local session, number, mark, newest
local turn = tonumber(ARGV[12])
if ARGV[8] == "" then
    session, number = string.match(ARGV[9], "^(.*):(%d+)$")
    number = tonumber(number)
    mark = "re:" .. (session or ARGV[9])
    newest = redis.call("HGET", KEYS[1], mark)
    newest = newest and tonumber(string.match(newest, "^%d+"))
    if newest and turn < newest then
        again = "2"
    end
end
local is_new_turn = mark and turn > 0 and not newest
local function note_turn()
    if mark and turn > (newest or 0) then
        redis.call("HSET", KEYS[1], mark, ARGV[12] .. " " .. redis.call("TIME")[1])
        newest = turn
    end
end
if epoch then  -- else there is nothing yet that would expire
    note_turn()
end
local id = ARGV[8] .. ":" .. ARGV[9]
local unbroken = run == ARGV[7]
for i = 14, #ARGV do
    unbroken = unbroken or run == ARGV[i]
end

if epoch and not unbroken and ARGV[14] == "?" then
    local newest = redis.call("XREVRANGE", KEYS[2], "+", "-", "COUNT", 1)[1]
    return redis.error_reply("STRANGE " .. (run or "-") .. " " .. (newest and newest[2][4] or 0))
end

-- Its offset, or nil and whether its session has said something there that comes after it.
local function found()
    local prefix = session and ":" .. session .. ":"
    local later = false
    for _, entry in ipairs(redis.call("XREVRANGE", KEYS[2], "+", "-", "COUNT", 1000)) do
        local other = entry[2][6]
        if other == id then
            return tonumber(string.match(entry[1], "^%d+"))
        elseif prefix and string.sub(other, 1, #prefix) == prefix then
            later = later or tonumber(string.sub(other, #prefix + 1)) > number
        end
    end
    return nil, later
end

-- What there is goes back to before it could have been published, and it is not there.
local function never_was()
    if again == "2" or not epoch or not unbroken then
        return false
    end
    local age = math.ceil(tonumber(ARGV[11])) + 1
    local since, is_first = string.match(began or "", "^(%d+) (%d)$")
    if since and tonumber(since) >= redis.call("TIME")[1] - age
            and not (is_first == "1" and again == "3") then
        return false  -- it may have been published in what is lost
    end
    local oldest = redis.call("XREVRANGE", KEYS[2], "+", "-", "COUNT", 1000)
    oldest = oldest[#oldest]
    if oldest then
        return string.match(oldest[1], "^%d+") == "1"
            or tonumber(oldest[2][4]) < redis.call("TIME")[1] - age
    end
    return top == 0 or age < tonumber(ARGV[4])
end

if again ~= "0" then
    local last = ARGV[8] ~= "" and redis.call("HGET", KEYS[1], by)
    local offset, later = found()
    if offset then
        return {epoch, offset, 0}
    elseif last and tonumber(string.match(last, "^%d+")) >= tonumber(ARGV[9]) then
        return {epoch, 0, 0}  -- a node's numbers count up: its last one tells of all before
    elseif ARGV[8] == "" and not never_was() or again == "2" then
        return redis.error_reply("UNSURE whether it was published before")
    elseif later then
        return redis.error_reply("LATE: what was sent after it is there already")
    end
end
if not epoch then
    redis.call("DEL", KEYS[2])  -- the engine may have evicted the one without the other
end
local now = redis.call("TIME")
local keep = math.ceil(tonumber(ARGV[4]))
local anew = not epoch or not unbroken
local function add()
    return redis.pcall("XADD", KEYS[2], "MAXLEN", ARGV[3], string.format("%.0f-1", top + 1),
        "parcel", ARGV[2], "time", now[1], "id", id)
end
-- First of all: where the entry can't be written nothing is, and no offset is used up.
local added = add()
if type(added) == "table" and string.find(added.err, "equal or smaller", 1, true) then
    redis.call("DEL", KEYS[2])  -- the state has fallen behind the entries: nothing here is sure
    anew = true
    added = add()
end
if type(added) == "table" then
    return added
end
if anew then
    began = now[1] .. (epoch and " 0" or " 1")
    epoch = ARGV[6]
elseif began and run ~= ARGV[7] then
    began = string.gsub(began, "1$", "0")  -- elsewhere, where more may have been lost
end
top = top + 1
local position = epoch .. "." .. string.format("%.0f", top)
redis.call("HSET", KEYS[1], "epoch", epoch, "run", ARGV[7], "top", string.format("%.0f", top),
    "began", began or "")
local is_new = is_new_turn
if ARGV[8] ~= "" then
    is_new = redis.call("HSET", KEYS[1], by, ARGV[9] .. " " .. now[1]) > 0
else
    note_turn()
end
-- Its first one here: nodes and sessions that have long been silent are forgotten, now and then.
if is_new and now[1] - (redis.call("HGET", KEYS[1], "swept") or 0) > 60 then
    redis.call("HSET", KEYS[1], "swept", now[1])
    local known = redis.call("HGETALL", KEYS[1])
    for i = 1, #known, 2 do
        local kind = string.sub(known[i], 1, 3)
        local time = (kind == "by:" or kind == "re:") and string.match(known[i + 1], " (%d+)$")
        if time and tonumber(time) < now[1] - tonumber(ARGV[5]) then
            redis.call("HDEL", KEYS[1], known[i])
        end
    end
end
redis.call("EXPIRE", KEYS[2], keep)
redis.call("EXPIRE", KEYS[1], keep + ARGV[5])
local heard = redis.call(ARGV[13] or "PUBLISH", ARGV[1], "@" .. position .. " " .. ARGV[2])
return {epoch, top, heard}
