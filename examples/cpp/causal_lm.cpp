// A float32 causal language modelling loss and its gradient, written for the golden files of refloss.
//
//     c++ -std=c++17 -O2 -o causal_lm examples/cpp/causal_lm.cpp
//     refloss golden write golden --only causal_lm
//     ./causal_lm golden candidate
//     refloss compare golden candidate
//
// For every causal_lm case of the folder golden whose logits are float32 and whose parameters it knows it reads the inputs and writes loss and
// gradient into a file of the same name in the folder candidate. Your own kernel goes where `causal_lm` is; the rest
// reads and writes .safetensors: eight bytes for the length of a JSON header, the header, then the values of all
// tensors one after the other, little-endian as on the machines that this program is for.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// ---------------------------------------------------------------------------------------------------------------------
// The loss. B batch, S sequence, V vocabulary; R = B·S rows of logits.

struct Result {
    float loss;
    std::vector<float> dlogits;  // [R, V]
};

// The mean of −log softmax(logits)[target] over the rows whose target counts, or their sum over num_items if that is
// given, and its gradient times grad_output. The target of a token is the label of the next one, unless it is given.
Result causal_lm(const std::vector<float>& logits, const std::vector<std::int64_t>& target, std::size_t vocabulary,
                 std::int64_t ignore_index, double num_items, float grad_output) {
    std::size_t counted = 0;
    for (std::int64_t label : target) counted += label != ignore_index;
    const float normaliser = num_items > 0 ? float(num_items) : float(counted);

    Result result{0.0f, std::vector<float>(logits.size(), 0.0f)};  // an ignored row's gradient is 0, whatever it holds
    for (std::size_t row = 0; row < target.size(); ++row) {
        if (target[row] == ignore_index) continue;
        const float* x = &logits[row * vocabulary];
        float* dx = &result.dlogits[row * vocabulary];
        float maximum = -std::numeric_limits<float>::infinity(), sum = 0.0f;
        for (std::size_t i = 0; i < vocabulary; ++i) maximum = std::fmax(maximum, x[i]);
        for (std::size_t i = 0; i < vocabulary; ++i) sum += dx[i] = std::exp(x[i] - maximum);
        result.loss += std::log(sum) - (x[target[row]] - maximum);
        for (std::size_t i = 0; i < vocabulary; ++i) {
            const float one_hot = std::int64_t(i) == target[row] ? 1.0f : 0.0f;
            dx[i] = (dx[i] / sum - one_hot) * (grad_output / normaliser);
        }
    }
    result.loss /= normaliser;  // 0/0 = NaN where no row counts
    return result;
}

std::vector<std::int64_t> next_labels(const std::vector<std::int64_t>& labels, std::size_t length,
                                      std::int64_t ignore_index) {
    std::vector<std::int64_t> target(labels.size(), ignore_index);
    for (std::size_t i = 0; i + 1 < labels.size(); ++i)
        if ((i + 1) % length != 0) target[i] = labels[i + 1];
    return target;
}

// ---------------------------------------------------------------------------------------------------------------------
// As much JSON as a manifest and a header hold.

struct Json {
    std::string text;  // of a string, or of a number, true, false and null as they are spelt
    std::vector<Json> items;
    std::map<std::string, Json> members;

    const Json& operator[](const std::string& key) const {
        const auto found = members.find(key);
        if (found == members.end()) throw std::runtime_error("no \"" + key + "\" in the JSON");
        return found->second;
    }
    bool has(const std::string& key) const { return members.count(key) != 0; }
    double number() const { return std::stod(text); }
};

class JsonReader {
  public:
    explicit JsonReader(const std::string& source) : source_(source) {}

    Json value() {
        Json json;
        if (take('{')) {
            while (!take('}')) {
                std::string key = string();
                expect(':');
                json.members.emplace(std::move(key), value());
                take(',');
            }
        } else if (take('[')) {
            while (!take(']')) {
                json.items.push_back(value());
                take(',');
            }
        } else if (peek() == '"') {
            json.text = string();
        } else {
            while (at_ < source_.size() && std::strchr(",]} \n\t\r", source_[at_]) == nullptr) json.text += source_[at_++];
            if (json.text.empty()) throw std::runtime_error("JSON ends where a value should be");
        }
        return json;
    }

  private:
    char peek() {
        while (at_ < source_.size() && std::strchr(" \n\t\r", source_[at_]) != nullptr) ++at_;
        return at_ < source_.size() ? source_[at_] : '\0';
    }
    bool take(char wanted) {
        const bool found = peek() == wanted;
        at_ += found;
        return found;
    }
    void expect(char wanted) {
        if (!take(wanted)) throw std::runtime_error(std::string("JSON without the ") + wanted + " it should have");
    }
    std::string string() {
        std::string text;
        expect('"');
        while (at_ < source_.size() && source_[at_] != '"') {
            if (source_[at_] == '\\') ++at_;  // enough for \" and \\ ; names of cases and tensors have no others
            text += source_.at(at_++);
        }
        expect('"');
        return text;
    }

    const std::string& source_;
    std::size_t at_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Files.

struct Tensor {
    std::string dtype;
    std::vector<std::size_t> shape;
    std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

std::string read_file(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path.string() + ": cannot be read");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Tensors read_safetensors(const std::filesystem::path& path) {
    const std::string file = read_file(path);
    std::uint64_t length = 0;
    if (file.size() < sizeof length) throw std::runtime_error(path.string() + ": too short");
    std::memcpy(&length, file.data(), sizeof length);
    const std::string text = file.substr(sizeof length, length);
    const Json header = JsonReader(text).value();
    Tensors tensors;
    for (const auto& [name, entry] : header.members) {
        if (name == "__metadata__") continue;
        Tensor tensor{entry["dtype"].text, {}, {}};
        for (const Json& size : entry["shape"].items) tensor.shape.push_back(std::size_t(size.number()));
        const auto begin = std::size_t(entry["data_offsets"].items.at(0).number());
        const auto end = std::size_t(entry["data_offsets"].items.at(1).number());
        tensor.bytes = file.substr(sizeof length + length + begin, end - begin);
        tensors.emplace(name, std::move(tensor));
    }
    return tensors;
}

void write_safetensors(const std::filesystem::path& path, const Tensors& tensors) {
    std::ostringstream header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
        header << (data.empty() ? "{" : ",") << '"' << name << "\":{\"dtype\":\"" << tensor.dtype << "\",\"shape\":[";
        for (std::size_t i = 0; i < tensor.shape.size(); ++i) header << (i ? "," : "") << tensor.shape[i];
        header << "],\"data_offsets\":[" << data.size() << ',' << data.size() + tensor.bytes.size() << "]}";
        data += tensor.bytes;
    }
    header << '}';
    std::string text = header.str();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the values begin at a multiple of eight
    const std::uint64_t length = text.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), sizeof length);
    file << text << data;
    file.close();
    if (!file) throw std::runtime_error(path.string() + ": cannot be written");
}

// The values of a tensor that is stored as Stored, as Value.
template <typename Value, typename Stored>
std::vector<Value> values(const Tensor& tensor) {
    std::vector<Stored> stored(tensor.bytes.size() / sizeof(Stored));
    std::memcpy(stored.data(), tensor.bytes.data(), tensor.bytes.size());
    return {stored.begin(), stored.end()};
}

std::vector<std::int64_t> labels_of(const Tensor& tensor) {
    if (tensor.dtype == "I64") return values<std::int64_t, std::int64_t>(tensor);
    if (tensor.dtype == "I32") return values<std::int64_t, std::int32_t>(tensor);
    throw std::runtime_error("labels of type " + tensor.dtype);
}

Tensor float_tensor(std::vector<std::size_t> shape, const float* data, std::size_t count) {
    return {"F32", std::move(shape), {reinterpret_cast<const char*>(data), count * sizeof(float)}};
}

// ---------------------------------------------------------------------------------------------------------------------

// Whether the case is one for this program; if so, its file is written.
bool answer(const Json& entry, const std::filesystem::path& golden, const std::filesystem::path& candidate) {
    if (entry["function"].text != "causal_lm") return false;
    const Json& parameters = entry["parameters"];
    for (const auto& [name, value] : parameters.members)  // the right answer depends on all of them
        if (name != "ignore_index" && name != "num_items_in_batch" && name != "vocab_size") return false;
    const Tensors inputs = read_safetensors(golden / entry["file"].text);
    const Tensor& logits = inputs.at("input.logits");
    if (logits.dtype != "F32") return false;
    const std::int64_t ignore_index =
        parameters.has("ignore_index") ? std::int64_t(parameters["ignore_index"].number()) : -100;
    const double num_items = parameters.has("num_items_in_batch") ? parameters["num_items_in_batch"].number() : 0.0;
    const Tensor& labels = inputs.at("input.labels");
    const std::vector<std::int64_t> target =
        inputs.count("input.shift_labels") ? labels_of(inputs.at("input.shift_labels"))
                                           : next_labels(labels_of(labels), labels.shape.back(), ignore_index);
    const Result result = causal_lm(values<float, float>(logits), target, logits.shape.back(), ignore_index, num_items,
                                    float(entry["grad_output"].number()));
    write_safetensors(candidate / entry["file"].text,
                      {{"loss", float_tensor({}, &result.loss, 1)},
                       {"grad.logits", float_tensor(logits.shape, result.dlogits.data(), result.dlogits.size())}});
    return true;
}

int main(int count, char** arguments) {
    if (count != 3) {
        std::cerr << "usage: causal_lm GOLDEN CANDIDATE\n";
        return 2;
    }
    try {
        const std::filesystem::path golden = arguments[1], candidate = arguments[2];
        std::filesystem::create_directories(candidate);
        const std::string text = read_file(golden / "manifest.json");
        const Json manifest = JsonReader(text).value();
        int answered = 0;
        for (const Json& entry : manifest["cases"].items) answered += answer(entry, golden, candidate);
        std::cout << answered << " cases written to " << candidate.string() << '\n';
    } catch (const std::exception& error) {
        std::cerr << "causal_lm: " << error.what() << '\n';
        return 2;
    }
    return 0;
}
