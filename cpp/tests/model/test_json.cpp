#include "model/json.h"

#include <limits>

#include "check.h"

using swsl::Json;
using swsl::JsonError;

TEST(reads_every_kind_of_value) {
  const Json root = Json::parse(R"( {"a": [1, -2.5e-1, true, false, null, "x"], "b": {"c": {}}, "d": []} )");
  const auto& items = root.at("a").items();
  CHECK_EQ(items.size(), 6u);
  CHECK_EQ(items[0].integer(), 1);
  CHECK_EQ(items[0].number(), 1.0);
  CHECK_EQ(items[1].number(), -0.25);
  CHECK(items[2].boolean() && !items[3].boolean() && items[4].is_null());
  CHECK_EQ(items[5].string(), "x");
  CHECK(root.at("b").at("c").members().empty() && root.at("d").items().empty());
}

TEST(numbers_keep_their_value) {
  CHECK_EQ(Json::parse("9223372036854775807").integer(), std::numeric_limits<std::int64_t>::max());
  CHECK_EQ(Json::parse("9223372036854775808").number(), 9223372036854775808.0);
  CHECK_EQ(Json::parse("0.1").number(), 0.1);
  CHECK_EQ(Json::parse("-0.0033749828103929758").number(), -0.0033749828103929758);
  CHECK_EQ(Json::parse("1E+2").number(), 100.0);
  CHECK_THROWS(JsonError, "expected an integer, found a number", Json::parse("1.5").integer());
  CHECK_THROWS(JsonError, "a number that a double can hold at offset 1", Json::parse("[1e999]"));
}

TEST(strings_are_unescaped_to_utf8) {
  CHECK_EQ(Json::parse(R"("\"\\\/\b\f\n\r\t")").string(), "\"\\/\b\f\n\r\t");
  CHECK_EQ(Json::parse(R"("\u0041\u00e9\u20AC\ud83d\ude00")").string(), "Aé€😀");
  CHECK_EQ(Json::parse("\"é😀\"").string(), "é😀");
  CHECK_EQ(Json::parse(R"("\u0000")").string(), std::string(1, '\0'));
}

TEST(errors_give_the_offset_and_what_was_there) {
  CHECK_THROWS(JsonError, "expected a value at offset 0, found the end of the text", Json::parse(""));
  CHECK_THROWS(JsonError, "expected ',' or '}' at offset 8, found 'x'", Json::parse(R"({"a": 1 x})"));
  CHECK_THROWS(JsonError, "expected a key in quotes at offset 1, found '1'", Json::parse("{1: 2}"));
  CHECK_THROWS(JsonError, "expected the end of the text at offset 2, found ']'", Json::parse("1 ]"));
  CHECK_THROWS(JsonError, "comes twice, again at offset 9", Json::parse(R"({"a": 1, "a": 2})"));
  CHECK_THROWS(JsonError, "found byte 0x0a", Json::parse("\"a\nb\""));
  for (const char* text : {"[1,]",        "{\"a\":1,}",  "01",          "1.",
                           "1e",          "-",           "+1",          ".5",
                           "tru",         "nul",         "'a'",         "\"a",
                           "\"\\x\"",     "\"\\u12g4\"", "\"\\ud800\"", "\"\\ud800\\u0041\"",
                           "\"\\udc00\"", "[",           "{",           "{\"a\"",
                           "{\"a\":",     "NaN",         "Infinity",    "\""})
    CHECK_THROWS(JsonError, "", Json::parse(text));
}

TEST(nesting_is_limited) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  Json::parse(nested(Json::max_depth));
  CHECK_THROWS(JsonError, "nested deeper than 64", Json::parse(nested(100'000)));
}

TEST(wrong_types_are_named_by_path) {
  const Json root = Json::parse(R"({"golden": {"shape": [1, 3, "x"]}})");
  CHECK_THROWS(JsonError, "\"golden.shape[2]\": expected an integer, found a string",
               root.at("golden").at("shape").items()[2].integer());
  CHECK_THROWS(JsonError, "\"golden.logits\" is missing", root.at("golden").at("logits"));
  CHECK_THROWS(JsonError, "\"golden\": expected an array, found an object", root.at("golden").items());
}

// Whatever is cut off or changed in a document, the reader answers or throws JsonError; the sanitizers watch.
TEST(damaged_documents_are_errors_and_no_more) {
  const std::string whole = R"({"a": [1.5e3, "x\u00e9\n"], "b": {"c": null, "d": [true, false]}})";
  for (std::size_t cut = 0; cut < whole.size(); ++cut)
    CHECK_THROWS(JsonError, "offset", Json::parse(whole.substr(0, cut)));
  for (std::size_t at = 0; at < whole.size(); ++at)
    for (int byte = 0; byte < 256; ++byte) {
      std::string changed = whole;
      changed[at] = static_cast<char>(byte);
      try {
        Json::parse(changed);
      } catch (const JsonError&) {
      }
    }
}
